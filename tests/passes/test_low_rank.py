"""`low-rank`: what the two layers compute, how wide they meet, and what is left alone."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxsurgery.analysis.svd import rounding
from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.deploy import export_onnx
from fxsurgery.errors import SpecError
from fxsurgery.passes import LowRank, parse
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, PassResult
from nonempty import nonempty
from programs import program
from zoo import lively

IMAGE = torch.linspace(-1, 1, 2 * 4 * 13 * 11).sin().reshape(2, 4, 13, 11)


def captured(*layers: nn.Module, x: Tensor = IMAGE, seed: int = 0) -> Program:
    return capture(lively(nn.Sequential(*layers), seed).eval(), x)


def weights(result: PassResult, layer: str = "0") -> tuple[Tensor, Tensor]:
    first, second = (result.program.graph_module.get_submodule(f"{layer}_{w}") for w in ("first", "second"))
    return first.weight.detach(), second.weight.detach()


def composed(result: PassResult, scheme: str) -> Tensor:
    """(outputs, inputs, height, width): the kernel that the two layers are together."""
    first, second = weights(result)
    if scheme == "output":
        return torch.einsum("or,rcyx->ocyx", second[:, :, 0, 0], first)
    if scheme == "input":
        return torch.einsum("oryx,rc->ocyx", second, first[:, :, 0, 0])
    return torch.einsum("orx,rcy->ocyx", second[:, :, 0], first[..., 0])


def matrix(weight: Tensor, scheme: str) -> np.ndarray:
    outputs, inputs, height, width = weight.shape
    wide = weight.detach().double().numpy()
    if scheme == "output":
        return wide.reshape(outputs, -1)
    if scheme == "input":
        return wide.transpose(1, 0, 2, 3).reshape(inputs, -1)
    return wide.transpose(0, 3, 1, 2).reshape(outputs * width, inputs * height)


@pytest.mark.parametrize("scheme", ["output", "input", "spatial"])
def test_what_is_lost_is_the_tail_of_the_singular_values(scheme: str):
    conv = nn.Conv2d(4, 10, (3, 5))
    start = captured(conv)
    values = np.linalg.svd(matrix(conv.weight, scheme), compute_uv=False)
    for rank in (1, 2, 3):
        result = LowRank("0", rank=rank, scheme=scheme)(start)
        assert result.effect is Effect.LOSSY
        assert result.error is None
        lost = float((composed(result, scheme) - conv.weight.detach()).double().norm())
        assert lost == pytest.approx(float(np.sqrt((values[rank:] ** 2).sum())), rel=1e-5)


def test_what_is_lost_of_a_linear_layer_is_the_tail_of_the_singular_values():
    linear = nn.Linear(11, 7)
    start = captured(linear)
    values = np.linalg.svd(linear.weight.detach().double().numpy(), compute_uv=False)
    first, second = weights(LowRank("0", rank=4)(start))
    assert float((second @ first - linear.weight.detach()).norm()) == pytest.approx(
        float(np.sqrt((values[4:] ** 2).sum())), rel=1e-5
    )


CONVS = {
    "plain": nn.Conv2d(4, 10, 3),
    "padded": nn.Conv2d(4, 10, (3, 5), padding=(2, 1)),
    "strided": nn.Conv2d(4, 10, 3, stride=(2, 3), padding=1),
    "dilated": nn.Conv2d(4, 10, (3, 2), dilation=(2, 3), padding=(1, 2)),
    "same": nn.Conv2d(4, 10, (2, 4), padding="same"),
    "valid": nn.Conv2d(4, 10, 3, padding="valid", stride=2),
    "reflect": nn.Conv2d(4, 10, 3, padding=(2, 1), padding_mode="reflect"),
    "replicate": nn.Conv2d(4, 10, 3, padding=1, padding_mode="replicate", stride=2),
    "circular": nn.Conv2d(4, 10, (3, 5), padding=(1, 2), padding_mode="circular"),
    "circular same": nn.Conv2d(4, 10, (2, 3), padding="same", padding_mode="circular"),
    "no bias": nn.Conv2d(4, 10, 3, padding=1, bias=False),
    "narrow": nn.Conv2d(4, 2, 3, padding=1),
    "pointwise": nn.Conv2d(4, 10, 1, stride=2, padding=1),
}


@pytest.mark.parametrize("scheme", ["output", "input", "spatial"])
@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("kind", CONVS)
def test_full_rank_is_exact(kind: str, scheme: str):
    conv = copy.deepcopy(CONVS[kind])
    start = captured(conv)
    full = min(matrix(conv.weight, scheme).shape)
    result = LowRank("0", rank=full, scheme=scheme)(start)
    assert result.effect is Effect.EXACT
    assert result.error is not None
    assert result.error < 1e-5
    names = {name for name, _ in result.program.graph_module.named_parameters()}
    assert names == {"0_first.weight", "0_second.weight"} | ({"0_second.bias"} if conv.bias is not None else set())


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2), torch.randn(2, 4, 15)),
        (nn.Conv3d(4, 6, (3, 1, 2), stride=(1, 2, 1), padding=(1, 0, 1)), torch.randn(2, 4, 5, 6, 7)),
        (nn.Linear(5, 9), torch.randn(2, 3, 5)),
        (nn.Linear(9, 5, bias=False), torch.randn(2, 9)),
    ],
)
@pytest.mark.parametrize("scheme", ["auto", "output", "input"])
def test_full_rank_is_exact_in_other_dimensions(layer: nn.Module, x: Tensor, scheme: str):
    outputs, inputs = layer.weight.shape[:2]
    taps = layer.weight[0, 0].numel()
    full = {"output": min(outputs, inputs * taps), "input": min(inputs, outputs * taps)}
    move = LowRank("0", rank=full.get(scheme, max(full.values())), scheme=scheme)
    assert move(captured(copy.deepcopy(layer), x=x)).effect is Effect.EXACT


def test_exact_split_starts_training_from_the_same_outputs():
    start = captured(nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 3, 3))
    result = LowRank("0", rank=4, scheme="input")(start)
    assert result.effect is Effect.EXACT
    before, after = (p.trainable_copy().train() for p in (start, result.program))
    assert relative_error(after(IMAGE), before(IMAGE)) < 1e-5
    for name, buffer in nonempty(after.named_buffers()):
        assert relative_error(buffer.double(), before.get_buffer(name).double()) < 1e-5


def test_float64_is_exact_to_float64():
    start = captured(nn.Conv2d(4, 8, 3, padding=1).double(), x=IMAGE.double())
    result = LowRank("0", rank=8, scheme="output")(start)
    assert result.error is not None
    assert result.error < 1e-13


def test_both_factors_have_the_same_scale():
    first, second = weights(LowRank("0", rank=3, scheme="output")(captured(nn.Conv2d(4, 10, 3))))
    inner, outer = first.flatten(1), second.flatten(1)
    assert torch.allclose(inner.norm(dim=1), outer.norm(dim=0), rtol=1e-5)


def test_a_rank_beyond_that_of_the_weight_is_exact_and_trains():
    linear = nn.Linear(8, 6)
    with torch.no_grad():
        linear.weight.copy_(torch.outer(torch.arange(1.0, 7), torch.linspace(-1, 1, 8)))
    start = capture(nn.Sequential(linear).eval(), torch.linspace(-1, 1, 16).sin().reshape(2, 8))
    result = LowRank("0", rank=3)(start)
    assert result.effect is Effect.EXACT
    model = result.program.trainable_copy().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (model(start.example_inputs[0]) - torch.linspace(-1, 1, 12).cos().reshape(2, 6)).square().sum().backward()
        gradients = {name: p.grad.flatten(1) for name, p in model.named_parameters() if p.dim() > 1}
        optimizer.step()
    assert all(float(g.norm(dim=1).min()) > 1e-3 for g in nonempty(gradients.values()))


def test_energy_is_the_smallest_rank_that_keeps_the_share():
    linear = nn.Linear(40, 30)
    start = captured(linear, x=torch.randn(2, 40))
    energy = np.linalg.svd(linear.weight.detach().double().numpy(), compute_uv=False) ** 2
    for share in (0.1, 0.35, 0.6):
        wanted = int(np.searchsorted(energy.cumsum() / energy.sum(), share)) + 1
        assert weights(LowRank("0", energy=share)(start))[0].shape[0] == wanted


def test_all_the_energy_is_the_rank_of_the_weight():
    linear = nn.Linear(40, 30)
    with torch.no_grad():
        linear.weight.copy_(torch.randn(30, 4) @ torch.randn(4, 40))
    result = LowRank("0", energy=1.0)(capture(nn.Sequential(linear).eval(), torch.randn(2, 40)))
    assert weights(result)[0].shape == (4, 40)
    assert result.effect is Effect.EXACT


def parameters(program: Program) -> int:
    return sum(p.numel() for p in program.graph_module.parameters())


@pytest.mark.parametrize("scheme", ["auto", "output", "input", "spatial"])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_params_is_the_largest_rank_within_the_share(scheme: str, share: float):
    start = captured(nn.Conv2d(16, 24, 3), x=torch.randn(1, 16, 6, 6))
    result = LowRank("0", params=share, scheme=scheme)(start)
    first, second = weights(result)
    another = first[:1].numel() + second[:, :1].numel()
    assert parameters(result.program) <= share * parameters(start) < parameters(result.program) + another


def test_auto_with_a_rank_has_the_fewest_parameters():
    start = captured(nn.Conv2d(16, 24, 3), x=torch.randn(1, 16, 6, 6))
    sizes = [parameters(LowRank("0", rank=4, scheme=s)(start).program) for s in ("output", "input", "spatial")]
    assert parameters(LowRank("0", rank=4)(start).program) == min(sizes) == sizes[2]


def test_auto_with_a_share_of_parameters_keeps_the_most_energy():
    conv = nn.Conv2d(16, 24, 3)
    with torch.no_grad():
        conv.weight.copy_(torch.einsum("oryx,rc->ocyx", torch.randn(24, 5, 3, 3), torch.randn(5, 16)))
    result = LowRank("0", params=0.5)(capture(nn.Sequential(conv).eval(), torch.randn(1, 16, 6, 6)))
    assert result.effect is Effect.EXACT
    assert weights(result)[0].shape[2:] == (1, 1)


def test_each_call_of_a_shared_layer_goes_through_both():
    start = program("SharedConv")
    result = LowRank("conv", rank=6, scheme="output")(start)
    assert result.effect is Effect.EXACT
    targets = [n.target for n in result.program.nodes if n.op == "call_module"]
    assert targets.count("conv_first") == targets.count("conv_second") == 2
    assert "conv" not in targets


def test_bias_brings_its_past_along():
    assert {n: o.name for n, o in LowRank("a", rank=3)(program("NoNorm")).origins.items()} == {
        "a_second.bias": "a.bias"
    }


def test_frozen_layer_stays_frozen_and_keeps_its_dtype():
    layer = nn.Linear(6, 6).half().requires_grad_(requires_grad=False)
    result = LowRank("0", rank=2)(capture(nn.Sequential(layer).eval(), torch.randn(2, 6).half()))
    assert all(
        p.dtype is torch.float16 and not p.requires_grad for p in nonempty(result.program.graph_module.parameters())
    )


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class Borrowed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).relu() @ self.a.weight


def refusal(move: LowRank, start: Program) -> str:
    result = move(start)
    assert result.changes == 0
    assert len(result.refusals) == 1
    return result.refusals[0].reason


@pytest.mark.parametrize(("model", "of"), [(Tied(), "b.weight"), (Borrowed(), "%")])
def test_weight_that_something_else_uses_is_left_alone(model: nn.Module, of: str):
    reason = refusal(LowRank("a", rank=1), capture(model.eval(), torch.randn(2, 6)))
    assert reason.startswith(("a.weight is", "the tensors of a are"))
    assert of in reason


def test_groups_transposes_and_computed_weights_are_left_alone():
    assert "4 groups" in refusal(LowRank("grouped", rank=1), program("Grouped"))
    assert "ConvTranspose2d" in refusal(LowRank("0", rank=1), captured(nn.ConvTranspose2d(4, 4, 3)))
    normed = torch.nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    assert "computed" in refusal(LowRank("0", rank=1), capture(nn.Sequential(normed).eval(), IMAGE))


def test_weight_without_a_rank_is_left_alone():
    zero, infinite = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
    nn.init.zeros_(zero.weight)
    nn.init.constant_(infinite.weight, torch.inf)
    assert "all zero" in refusal(LowRank("0", rank=1), capture(nn.Sequential(zero).eval(), IMAGE))
    assert "finite" in refusal(LowRank("0", rank=1), capture(nn.Sequential(infinite, nn.ReLU()).eval(), IMAGE))


def test_only_an_explicit_rank_may_cost_parameters():
    start = captured(nn.Conv2d(4, 10, 3))
    assert "energy=0.999" in refusal(LowRank("0", energy=0.999, scheme="output"), start)
    assert "params=0.01" in refusal(LowRank("0", params=0.01), start)
    assert parameters(LowRank("0", rank=10, scheme="output")(start).program) > parameters(start)


def test_spatial_scheme_wants_two_dimensions():
    assert "Linear" in refusal(LowRank("head", rank=1, scheme="spatial"), program("Plain"))
    assert "Conv1d" in refusal(LowRank("a", rank=1, scheme="spatial"), program("Conv1dNet"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("layer='body.9',rank=1", "no layer 'body.9'; there are: body.0, body.4, head"),
        ("layer='head'", "exactly one of rank, energy and params, not none"),
        ("layer='head',rank=1,params=0.5", r"not \['params', 'rank'\]"),
        ("layer='head',rank=11", "head has ranks from 1 to 10, not 11"),
        ("layer='head',rank=0", "head has ranks from 1 to 10, not 0"),
        ("layer='head',energy=0.0", "above 0, at most 1"),
        ("layer='head',params=1.0", "above 0, below 1"),
        ("layer='head',rank=1,scheme='depthwise'", "'auto', 'output', 'input' or 'spatial'"),
    ],
)
def test_fields_without_a_meaning_are_errors(options: str, said: str):
    with pytest.raises(SpecError, match=said):
        parse(f"low-rank({options})")(program("Plain"))


def test_rounding_is_that_of_the_dtype():
    assert rounding(torch.zeros(1)) < 1e-6 < rounding(torch.zeros(1, dtype=torch.float16))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding=.same.")
@pytest.mark.parametrize("kind", ["padded", "strided", "dilated", "reflect", "same"])
@pytest.mark.parametrize("scheme", ["output", "input", "spatial"])
def test_onnx_of_each_scheme_agrees(kind: str, scheme: str, tmp_path):
    result = LowRank("0", rank=2, scheme=scheme)(captured(copy.deepcopy(CONVS[kind]))).program
    assert export_onnx(result.graph_module, result.example_inputs, tmp_path / "model.onnx").parity is not None
