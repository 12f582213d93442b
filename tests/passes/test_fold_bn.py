"""`fold-bn`: what it does, and what it leaves alone."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm

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


@pytest.mark.parametrize("tokens", [5, 6])
def test_a_norm_over_tokens_is_left_alone(tokens: int):
    """Of (batch, tokens, outputs), dim 1 is what `BatchNorm1d` takes."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(tokens), nn.ReLU(), nn.Linear(6, 3))
    start = capture(lively(model).eval(), torch.ones(2, tokens, 4))
    assert [r.reason for r in FoldBn()(start).refusals] == ["the norm runs over another dim of %_0"]
    assert not list(FoldBn.candidates(start))


def test_a_conv_without_a_batch_is_left_alone():
    model = nn.Sequential(nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.Conv1d(6, 3, 1))
    result = FoldBn()(capture(lively(model).eval(), torch.linspace(-1, 1, 24).reshape(3, 8)))
    assert [r.reason for r in result.refusals] == ["the norm runs over another dim of %_0"]


@pytest.mark.parametrize("normed", [parametrizations.weight_norm, parametrizations.spectral_norm, spectral_norm])
def test_a_weight_that_is_computed_is_left_alone(normed: Callable[[nn.Module], nn.Module]):
    model = nn.Sequential(normed(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    [refusal] = FoldBn()(capture(model.eval(), IMAGE)).refusals
    assert refusal.reason == "the weight of 0 is computed from other tensors"


class Penalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.norm(self.conv(x)), self.conv.weight.square().sum()


def test_a_weight_that_is_read_elsewhere_is_left_alone():
    [refusal] = FoldBn()(capture(lively(Penalized()).eval(), IMAGE)).refusals
    assert refusal.reason == "the tensors of conv are read by %conv_weight as well"


@pytest.mark.parametrize(
    ("layer", "images"),
    [
        (nn.Linear(4, 6), torch.randn(3, 4)),
        (nn.ConvTranspose2d(4, 6, 2, groups=2), torch.randn(2, 4, 3, 3)),
        (nn.ConvTranspose1d(4, 6, 2, bias=False), torch.randn(2, 4, 3)),
        (nn.Conv3d(4, 6, 2, groups=2), torch.randn(2, 4, 3, 3, 3)),
    ],
)
@pytest.mark.parametrize("affine", [True, False])
def test_norms_with_and_without_a_scale_fold_into_every_kind_of_layer(
    layer: nn.Module, images: torch.Tensor, affine: bool
):
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[images.dim()](6, affine=affine)
    result = FoldBn()(capture(lively(nn.Sequential(layer, norm, nn.Tanh())).eval(), images))
    assert result.changes == 2
    assert result.error is not None
    assert result.error < 1e-5
    folded = result.program.graph_module.get_submodule("0")
    assert folded.bias.requires_grad


def test_a_weight_that_another_layer_has_too_is_left_alone():
    model = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 3, padding=1))
    model[3].weight = model[0].weight
    result = FoldBn()(capture(model.eval(), torch.randn(2, 3, 6, 6)))
    assert result.changes == 0
    assert "3" in result.refusals[0].reason
