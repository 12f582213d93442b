"""`deepen`: an identity layer and its activation, in eval and in train mode, and where none can go."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import SpecError
from fxsurgery.passes import Deepen
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, PassResult
from nonempty import nonempty
from programs import program
from zoo import lively

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(8, 3, 6, 6, generator=GENERATOR)
N = 8 * 6 * 6
"""Values of one channel."""


def captured(*layers: nn.Module, inputs: Tensor = IMAGES) -> Program:
    return capture(lively(nn.Sequential(*layers)).eval(), inputs)


def cell() -> Program:
    """Conv -> bn -> relu, and a head."""
    layers = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4)
    return captured(*layers)


def in_train_mode(of: Program) -> Tensor:
    return of.trainable_copy().train()(IMAGES)


def activation(of: Program) -> str:
    """The name of the one activation of a program."""
    (found,) = Deepen.candidates(of)
    return found.after


def deepened(of: Program, **options: object) -> PassResult:
    return Deepen(activation(of), **options)(of)


def test_conv_bn_and_relu_go_after_a_block_that_has_them():
    result = deepened(cell()).program.graph_module
    assert [type(m).__name__ for m in result.children()][:3] == ["Conv2d", "BatchNorm2d", "ReLU"]
    assert sorted(n for n, _ in result.named_children()) == sorted(
        ["0", "1", "2", "2_deeper", "2_deeper_norm", "2_deeper_act", "3", "4"]
    )
    kinds = [type(result.get_submodule(f"2_deeper{end}")) for end in ("", "_norm", "_act")]
    assert kinds == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]


@pytest.mark.parametrize("norm", ["none", "batch"])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 5), (8, 6)),
        (nn.Conv1d(6, 5, 3), (8, 6, 7)),
        (nn.Conv2d(6, 5, (3, 1), stride=2, dilation=2), (8, 6, 7, 7)),
        (nn.Conv3d(6, 6, 1, groups=3, padding=1, padding_mode="circular"), (8, 6, 3, 3, 3)),
    ],
)
def test_outputs_stay_the_same_on_inputs_it_never_saw(layer: nn.Module, shape: tuple[int, ...], norm: str):
    start = captured(layer, nn.ReLU6(), inputs=torch.randn(shape, generator=GENERATOR))
    result = deepened(start, norm=norm)
    unseen = 3 * torch.randn(shape, generator=GENERATOR)
    assert result.effect is Effect.EXACT
    assert relative_error(result.program(unseen), start(unseen)) < 1e-5


class Functional(nn.Module):
    """An activation that no module holds."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.call = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), call

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.call(self.a(x)))


@pytest.mark.parametrize(
    "call",
    [
        F.relu,
        torch.relu,
        lambda x: x.relu(),
        lambda x: x.relu_(),
        lambda x: x.clamp(min=0, max=1),
        lambda x: F.hardtanh(x, -0.5, 0.2, inplace=True),
    ],
)
def test_functional_activations_are_repeated_with_their_options(call: Callable[[Tensor], Tensor]):
    start = capture(lively(Functional(call)).eval(), IMAGES)
    result = deepened(start)
    assert result.effect is Effect.EXACT
    assert "a_deeper" in dict(result.program.graph_module.named_modules())
    assert relative_error(result.program(2 * IMAGES), start(2 * IMAGES)) < 1e-5


@pytest.mark.parametrize("act", [nn.LeakyReLU(0.2), nn.GELU(), nn.Tanh(), nn.Hardswish()])
def test_piecewise_linear_is_not_enough(act: nn.Module):
    """Eq. 3 of the paper holds for idempotent functions alone: LeakyReLU is piecewise linear, and is none."""
    start = captured(nn.Conv2d(3, 4, 1), act, nn.Conv2d(4, 2, 1))
    result = deepened(start)
    assert result.effect is Effect.LOSSY
    assert relative_error(result.program(IMAGES), start(IMAGES)) > 1e-2


def test_norm_repeats_the_measured_statistics_in_train_mode():
    """By sqrt(n / (n - 1)) = 1.0017 off at most; `x` itself comes back, so the outputs hardly move."""
    start = cell()
    result = deepened(start).program
    assert relative_error(in_train_mode(result), in_train_mode(start)) < math.sqrt(N / (N - 1)) - 1
    assert relative_error(result(IMAGES), start(IMAGES)) < 1e-5


def test_usual_pair_passes_in_eval_mode_and_breaks_in_train_mode():
    """Mean 0, variance 1: 5e-6 off in eval mode, 0.29 in train mode, where the measured ones are 1e-3 off at most."""
    start = cell()
    result = deepened(start).program
    broken = result.trainable_copy()
    broken.get_submodule("2_deeper_norm").reset_parameters()
    usual = result.with_weights(broken)
    assert relative_error(usual(IMAGES), start(IMAGES)) < 1e-5
    assert relative_error(in_train_mode(usual), in_train_mode(start)) > 0.25


def test_statistics_stay_right_over_three_steps_that_move_nothing_else():
    start = cell()
    result = deepened(start).program
    models = [of.trainable_copy().train() for of in (start, result)]
    for _ in range(3):
        for model in models:
            model(IMAGES)
    before, after = (of.with_weights(model) for of, model in zip((start, result), models, strict=True))
    assert relative_error(after(IMAGES), before(IMAGES)) < 5e-3


def test_statistics_are_those_of_train_mode():
    start = cell()
    norm = deepened(start).program.graph_module.get_submodule("2_deeper_norm")
    model = start.trainable_copy().train()
    values = F.relu(model.get_submodule("1")(model.get_submodule("0")(IMAGES))).detach()
    torch.testing.assert_close(norm.running_mean, values.mean((0, 2, 3)))
    torch.testing.assert_close(norm.running_var, values.var((0, 2, 3), unbiased=True))
    torch.testing.assert_close(norm.weight, (norm.running_var + norm.eps).sqrt())
    torch.testing.assert_close(norm.bias, norm.running_mean)


def test_one_step_moves_every_entry_of_the_new_layer():
    result = deepened(cell(), norm="none").program
    model = result.trainable_copy().train()
    (model(IMAGES) - 1).square().mean().backward()
    layer = model.get_submodule("2_deeper")
    assert all(bool((p.grad != 0).all()) for p in nonempty(layer.parameters()))
    assert all(bool(p.grad.any()) for p in nonempty(model.parameters()))


def test_new_norm_is_like_the_one_before():
    layers = nn.Linear(6, 5), nn.BatchNorm1d(5, eps=1e-2, momentum=0.3), nn.ReLU()
    result = deepened(captured(*layers, inputs=torch.randn(9, 6, generator=GENERATOR)))
    norm = result.program.graph_module.get_submodule("2_deeper_norm")
    assert (norm.eps, norm.momentum) == (1e-2, 0.3)
    assert result.program.graph_module.get_submodule("2_deeper").bias is None


def test_without_a_norm_before_there_is_none_after():
    for result in (deepened(captured(nn.Conv2d(3, 4, 1), nn.ReLU())), deepened(cell(), norm="none")):
        assert not any(name.endswith("deeper_norm") for name, _ in result.program.graph_module.named_modules())


class Sequence(nn.Module):
    """(batch, steps, channels), with as many steps as channels, then transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 6), nn.Conv1d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x).transpose(1, 2)))


def test_linear_follows_the_last_dim_of_a_sequence():
    start = captured(nn.Linear(3, 6), nn.LayerNorm(6), nn.ReLU(), inputs=torch.randn(2, 6, 3, generator=GENERATOR))
    layer = deepened(start).program.graph_module.get_submodule("2_deeper")
    assert isinstance(layer, nn.Linear)


def test_channels_are_where_the_structure_says_after_a_transpose():
    start = capture(lively(Sequence()).eval(), torch.randn(2, 6, 3, generator=GENERATOR))
    layer = deepened(start).program.graph_module.get_submodule("relu_deeper")
    assert isinstance(layer, nn.Conv1d)


def test_batch_norm_over_a_sequence_is_refused():
    start = captured(nn.Linear(3, 6), nn.ReLU(), inputs=torch.randn(2, 6, 3, generator=GENERATOR))
    result = deepened(start, norm="batch")
    assert result.changes == 0
    assert "at dim 2" in result.refusals[0].reason


def test_map_of_one_position_gets_no_taps_that_see_nothing():
    layer = deepened(captured(nn.Conv2d(3, 4, 6), nn.ReLU()), kernel=5).program.graph_module.get_submodule("1_deeper")
    assert layer.kernel_size == (1, 1)


@pytest.mark.parametrize("kernel", [1, 5])
def test_kernel_is_that_asked_for(kernel: int):
    layer = deepened(cell(), kernel=kernel).program.graph_module.get_submodule("2_deeper")
    assert layer.kernel_size == (kernel, kernel)


def test_type_and_training_are_those_of_the_layer_before():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())).double().eval()
    model[0].requires_grad_(False)
    result = deepened(capture(model, IMAGES.double())).program.graph_module
    new = [*result.get_submodule("2_deeper").parameters(), *result.get_submodule("2_deeper_norm").parameters()]
    assert {p.dtype for p in new} == {torch.float64}
    assert not any(p.requires_grad for p in nonempty(new))


class OneActivation(nn.Module):
    """One module, called after each of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.b(self.act(self.a(x))))


def test_only_the_named_call_of_a_shared_activation_is_followed():
    start = capture(lively(OneActivation()).eval(), IMAGES)
    first, second = Deepen.candidates(start)
    once = first(start)
    twice = second(once.program)
    calls = [str(n.target) for n in twice.program.nodes if n.op == "call_module"]
    assert calls == ["a", "act", "act_deeper", "act_deeper_act", "b", "act", "act_deeper_2", "act_deeper_act_2"]
    assert twice.effect is Effect.EXACT


def test_second_application_deepens_again():
    once = deepened(cell()).program
    again = Deepen(activation(cell()))(once)
    assert again.effect is Effect.EXACT
    assert "2_deeper_2" in dict(again.program.graph_module.named_modules())


def test_gates_are_no_candidates():
    names = [move.after for move in Deepen.candidates(program("InvertedResidual"))]
    assert names == ["expand_2", "depthwise_2", "relu"]


@pytest.mark.parametrize(
    ("layers", "after", "reason"),
    [
        ((nn.Conv2d(3, 4, 1), nn.PReLU()), "_1", "not an activation"),
        ((nn.Conv2d(3, 4, 1), nn.Dropout()), "_1", "not an activation"),
        ((nn.Conv2d(3, 4, 1), nn.Softmax(1)), "_1", "not an activation"),
        ((nn.ReLU(), nn.Conv2d(3, 4, 1)), "_0", "which dim"),
        ((nn.Conv2d(3, 4, 1), nn.Flatten(0), nn.ReLU()), "_2", "which dim"),
    ],
)
def test_refusals_say_why(layers: tuple[nn.Module, ...], after: str, reason: str):
    start = captured(*layers)
    result = Deepen(after)(start)
    assert result.program is start
    assert reason in result.refusals[0].reason


def test_one_value_a_channel_gives_no_statistics():
    start = captured(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), inputs=torch.ones(1, 6))
    assert not list(Deepen.candidates(start))
    result = Deepen("_2")(start)
    assert result.changes == 0
    assert "one value per channel" in result.refusals[0].reason


@pytest.mark.parametrize(
    ("move", "says"),
    [
        (Deepen("nowhere"), "_2"),
        (Deepen("_2", kernel=4), "odd"),
        (Deepen("_2", norm="layer"), "'auto', 'batch' or 'none'"),
    ],
)
def test_fields_without_meaning_are_errors(move: Deepen, says: str):
    with pytest.raises(SpecError, match=says):
        move(cell())


class Formulas(nn.Module):
    """A GELU, a softplus and a rotation written out, and one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.04 * x.square() * x)))
        x = x * (F.relu6(x + 3) / 6)
        x = torch.relu(self.b(x))
        return self.c(torch.cat([-x[:, 3:], x[:, :3]], 1) + torch.log(1 + torch.exp(x)))


def test_steps_of_formulas_are_no_candidates():
    start = capture(lively(Formulas()).eval(), torch.randn(8, 6, generator=GENERATOR))
    assert [move.after for move in Deepen.candidates(start)] == ["relu"]
    assert Deepen("neg", norm="none")(start).effect is Effect.LOSSY


def test_a_program_that_does_not_run_in_train_mode_gives_no_statistics():
    """An instance norm of one position: eval mode takes it, with running statistics."""

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.b = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
            self.squeezed = nn.InstanceNorm2d(2, track_running_stats=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.squeezed(self.b(F.relu(self.bn(self.a(x)))).mean((2, 3), keepdim=True))

    start = capture(lively(Squeezed()).eval(), IMAGES)
    [refusal] = Deepen("relu")(start).refusals
    assert refusal.reason.startswith("the program gives no statistics in train mode: Expected more than 1 spatial")
    assert not list(Deepen.candidates(start))
    assert Deepen("relu", norm="none")(start).changes
