import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import weight_norm

from fxsurgery.analysis.shared_modules import called_again, fixed, names_of, shared
from fxsurgery.capture import capture
from fxsurgery.match import Refusal
from programs import program


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own, self.tied, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.normed, self.read = weight_norm(nn.Linear(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.normed(self.other(self.tied(self.own(x))))
        return F.linear(self.read(x), self.read.weight)


def test_who_else_has_or_reads_a_tensor_is_told():
    start = capture(Net().eval(), torch.randn(2, 4))
    assert fixed(start, "own") is None
    assert fixed(start, "tied") == Refusal("tied", "tied.weight is other.weight as well")
    assert shared(start, "other") == Refusal("other", "other.weight is tied.weight as well")
    assert "computed from other tensors" in str(fixed(start, "normed"))
    assert "read by %read_weight" in str(fixed(start, "read"))
    assert names_of(start, start.graph_module.get_parameter("tied.weight")) == ["tied.weight", "other.weight"]


def test_a_second_call_is_counted():
    assert called_again(program("SharedConv"), "conv") == Refusal("conv", "conv is called 2 times")
    assert called_again(program("SharedConv"), "stem") is None
