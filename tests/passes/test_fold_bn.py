"""`fold-bn`: what it does, and what it leaves alone."""

import torch
from torch import Tensor, nn

from fxsurgery.capture import capture
from fxsurgery.passes import FoldBn
from programs import program
from zoo import lively

IMAGE = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6)


def test_bn_disappears_into_conv_and_linear():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)
    )
    result = FoldBn()(capture(lively(model).eval(), IMAGE))
    assert [type(m).__name__ for m in result.program.graph_module.children()] == ["Conv2d", "ReLU", "Flatten", "Linear"]
    assert result.error is not None
    assert result.error < 1e-5


def test_shared_conv_is_left_alone_with_a_reason():
    reasons = {r.reason for r in FoldBn()(program("SharedConv")).refusals}
    assert any("is called 2 times" in reason for reason in reasons)


class TwoReaders(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y


def test_conv_with_another_reader_is_left_alone():
    result = FoldBn()(capture(TwoReaders().eval(), IMAGE))
    assert result.changes == 0
    assert [r.reason for r in result.refusals] == ["%conv has 2 readers"]


def test_norm_without_running_statistics_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))
    result = FoldBn()(capture(model.eval(), IMAGE))
    assert [r.reason for r in result.refusals] == ["the batch norm has no running statistics"]
