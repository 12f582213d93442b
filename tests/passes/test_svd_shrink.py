"""`svd-shrink`: the formula, the signs, what the data adds, and what is left alone."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import SpecError
from fxsurgery.passes import SvdShrink, parse
from fxsurgery.program import Program
from fxsurgery.surgery import Effect
from nonempty import nonempty
from programs import program
from zoo import lively


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DATA, OTHER = drawn(512, 24), drawn(1000, 24, seed=1)


def dense(activation: nn.Module, seed: int = 0) -> nn.Sequential:
    """24 -> 16 -> 6, with lively biases."""
    return lively(nn.Sequential(nn.Linear(24, 16), activation, nn.Linear(16, 6)), seed).eval()


def error(got: Tensor, wanted: Tensor) -> float:
    with torch.no_grad():
        return float((got - wanted).norm() / wanted.norm())


def lost(move: SvdShrink, start: Program, inputs: Tensor = OTHER) -> float:
    return error(move(start).program(inputs), start(inputs))


def arrays(model: nn.Sequential) -> tuple[np.ndarray, ...]:
    """Weights and biases of the two layers, for row vectors, in float64."""
    first, second = model[0], model[-1]
    return tuple(t.detach().double().numpy().T for t in (first.weight, first.bias, second.weight, second.bias))


# -- the formula ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", ["", ",whiten=True", ",signs='as is'", ",refit=True"])
def test_full_rank_without_an_activation_is_exact(options: str):
    result = parse(f"svd-shrink(layer='0',units=16{options})")(capture(dense(nn.Dropout()), DATA))
    assert result.effect is Effect.EXACT
    assert result.error is not None
    assert result.error < 1e-5


@pytest.mark.parametrize("whiten", [False, True])
def test_as_many_units_as_the_rank_are_exact_without_an_activation(whiten: bool):
    model = dense(nn.Identity())
    with torch.no_grad():
        model[0].weight.copy_(drawn(16, 5) @ drawn(5, 24, seed=1) / 5)
    start = capture(model, DATA)
    result = SvdShrink("0", 5, whiten)(start)
    assert result.effect is Effect.EXACT
    assert relative_error(result.program(OTHER), start(OTHER)) < 1e-5
    assert SvdShrink("0", 4, whiten)(start).effect is Effect.LOSSY


def test_too_few_samples_to_show_the_rank_promise_nothing():
    start = capture(dense(nn.Identity()), DATA[:5])
    assert SvdShrink("0", 8, whiten=True)(start).effect is Effect.LOSSY


@pytest.mark.parametrize("units", [3, 8, 12])
def test_both_biases_follow_the_formula(units: int):
    model = dense(nn.Identity())
    a, b1, w2, b2 = arrays(model)
    v = np.linalg.svd(a)[2].T[:, :units]
    x = OTHER.double().numpy()
    wanted = (x @ a @ v + b1 @ v) @ v.T @ w2 + b2 + b1 @ (np.eye(16) - v @ v.T) @ w2
    got = SvdShrink("0", units, signs="as is")(capture(model, DATA)).program(OTHER)
    assert relative_error(got, torch.from_numpy(wanted)) < 1e-5


@pytest.mark.parametrize("seed", range(4))
def test_published_formula_is_off_by_as_much_as_the_output_at_full_rank(seed: int):
    """The published text: the biases stay as they were, and the activation sees the signs that came out."""
    model = dense(nn.ReLU(), seed)
    a, b1, w2, b2 = arrays(model)
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    published = np.maximum(OTHER.double().numpy() @ u * s + b1, 0) @ vt @ w2 + b2
    off = error(torch.from_numpy(published), model(OTHER))
    assert 0.75 < off < 1.5
    assert lost(SvdShrink("0", 16), capture(model, DATA)) < min(0.7, 0.9 * off)


def test_published_biases_are_wrong_at_full_rank_without_an_activation():
    """By b1 (I - V^T) W2, which is of the size of y where the biases are."""
    model = dense(nn.Identity())
    with torch.no_grad():
        model[0].bias.mul_(6)
    a, b1, w2, b2 = arrays(model)
    u, s, vt = np.linalg.svd(a, full_matrices=False)
    published = (OTHER.double().numpy() @ u * s + b1) @ vt @ w2 + b2
    assert error(torch.from_numpy(published), model(OTHER)) > 0.5
    assert lost(SvdShrink("0", 16), capture(model, DATA)) < 1e-5


# -- signs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU()])
def test_signs_alone_change_the_error_by_half_of_the_output(seed: int, activation: nn.Module):
    """0.79 to 1.08 by the signs alone, from one draw to the next; on data it stays below the best of 40."""
    model = dense(activation, seed)
    a, b1, w2, b2 = (torch.from_numpy(np.ascontiguousarray(t)) for t in arrays(model))
    vectors = torch.linalg.svd(a)[2].T
    errors = list[float]()
    for draw in range(40):
        v = vectors * (2.0 * (drawn(16, seed=draw) > 0) - 1)
        errors.append(error(activation(OTHER.double() @ a @ v + b1 @ v) @ v.T @ w2 + b2, model(OTHER)))
    assert 0.6 < min(errors) < 0.9
    assert 1.0 < max(errors) < 1.5
    assert lost(SvdShrink("0", 16), capture(model, DATA)) < min(errors)


@pytest.mark.parametrize("units", [4, 8, 12, 16])
@pytest.mark.parametrize("seed", range(3))
def test_signs_on_data_lose_less_than_signs_as_they_come(units: int, seed: int):
    start = capture(dense(nn.ReLU(), seed), DATA)
    assert lost(SvdShrink("0", units), start) < 0.96 * lost(SvdShrink("0", units, signs="as is"), start)


def spread(model: nn.Module, wanted: Tensor) -> float:
    """The error on the data, but for a constant."""
    with torch.no_grad():
        off = model(DATA) - wanted
    return float((off - off.mean(0)).norm())


def test_no_single_sign_could_be_better():
    start = capture(dense(nn.ReLU()), DATA)
    result = SvdShrink("0", 6)(start)
    wanted = start(DATA).detach()
    best = spread(result.program.graph_module, wanted)
    for unit in range(6):
        flipped = result.program.trainable_copy()
        with torch.no_grad():
            first, second = flipped.get_submodule("0"), flipped.get_submodule("2")
            first.weight[unit] *= -1
            first.bias[unit] *= -1
            second.weight[:, unit] *= -1
        assert spread(flipped, wanted) > best


def test_mean_of_the_output_is_kept():
    start = capture(dense(nn.ReLU()), DATA)
    means = [p(DATA).mean(0) for p in (start, SvdShrink("0", 5)(start).program, SvdShrink("0", 5, True)(start).program)]
    assert torch.allclose(means[0], means[1], atol=1e-5)
    assert torch.allclose(means[0], means[2], atol=1e-5)


def test_no_sign_silences_a_unit_for_good():
    model = dense(nn.ReLU())
    with torch.no_grad():
        model[0].bias.fill_(40.0)
    result = SvdShrink("0", 8)(capture(model, DATA))
    with torch.no_grad():
        first = result.program.graph_module.get_submodule("0")
        assert bool((first(DATA) > 0).any(0).all())


# -- data -------------------------------------------------------------------------------------------------------


CORRELATED = DATA @ (drawn(24, 24, seed=2) * torch.logspace(0, -2, 24))


def test_whitened_directions_lose_the_tail_of_the_covariance():
    model = nn.Sequential(nn.Linear(24, 16), nn.Identity(), nn.Linear(16, 16)).eval()
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(16))
        model[2].bias.zero_()
    start = capture(model, CORRELATED)
    h = start(CORRELATED).detach().double().numpy()
    values = np.linalg.eigvalsh(np.cov(h.T, bias=True))[::-1]
    for units in (2, 5):
        got = SvdShrink("0", units, whiten=True)(start).program(CORRELATED).detach().double().numpy()
        assert float(((got - h) ** 2).sum(1).mean()) == pytest.approx(float(values[units:].sum()), rel=1e-3)
        plain = SvdShrink("0", units)(start).program(CORRELATED).detach().double().numpy()
        assert float(((plain - h) ** 2).sum(1).mean()) > 1.2 * float(values[units:].sum())


@pytest.mark.parametrize("units", [4, 8])
def test_whitening_helps_where_inputs_are_correlated(units: int):
    start = capture(dense(nn.ReLU()), CORRELATED)
    fresh = OTHER @ (drawn(24, 24, seed=2) * torch.logspace(0, -2, 24))
    assert lost(SvdShrink("0", units, whiten=True), start, fresh) < lost(SvdShrink("0", units), start, fresh)


@pytest.mark.parametrize(("seed", "units"), [*itertools.product(range(3), [4, 8, 16])])
def test_refitting_helps_on_inputs_that_it_did_not_see(seed: int, units: int):
    start = capture(dense(nn.ReLU(), seed), DATA)
    assert lost(SvdShrink("0", units, refit=True), start) < lost(SvdShrink("0", units), start)


@pytest.mark.parametrize("samples", [1, 2, 3, 8, 20])
def test_refitting_on_few_samples_changes_nothing(samples: int):
    start = capture(dense(nn.ReLU()), DATA[:samples])
    assert lost(SvdShrink("0", 12, refit=True), start) == pytest.approx(lost(SvdShrink("0", 12), start), rel=1e-5)


# -- convolutions -----------------------------------------------------------------------------------------------

IMAGE = drawn(4, 4, 9, 8)


def convs(activation: nn.Module, second: nn.Module) -> nn.Sequential:
    return lively(nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), activation, second)).eval()


def projected(model: nn.Sequential, units: int) -> Tensor:
    """What the second layer makes of the first one's channels, projected but for their bias."""
    conv, second = model[0], model[-1]
    weight = conv.weight.detach().double().flatten(1).numpy()
    u = torch.from_numpy(np.linalg.svd(weight, full_matrices=False)[0][:, :units]).float()
    h = F.conv2d(IMAGE, conv.weight, None, conv.stride, conv.padding)
    h = torch.einsum("bnyx,nr,mr->bmyx", h, u, u) + conv.bias[:, None, None]
    return second(h if isinstance(second, nn.Conv2d) else h.flatten(1)).detach()


@pytest.mark.parametrize(
    "second",
    [
        nn.Conv2d(8, 5, (3, 2), stride=2),
        nn.Conv2d(8, 5, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(8, 5, 1, dilation=2),
    ],
)
@pytest.mark.parametrize("units", [3, 6])
def test_every_tap_of_a_convolution_is_contracted(second: nn.Module, units: int):
    model = convs(nn.Identity(), second)
    result = SvdShrink("0", units, signs="as is")(capture(model, IMAGE))
    assert relative_error(result.program(IMAGE), projected(model, units)) < 1e-5
    assert SvdShrink("0", 8)(capture(model, IMAGE)).effect is Effect.EXACT


def test_positions_that_a_flatten_joins_are_contracted():
    model = lively(nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Flatten(), nn.Dropout(), nn.Linear(576, 5))).eval()
    result = SvdShrink("0", 3, signs="as is")(capture(model, IMAGE))
    assert relative_error(result.program(IMAGE), projected(model, 3)) < 1e-5
    assert result.program.graph_module.get_submodule("3").in_features == 3 * 72


def test_a_bias_out_of_reach_is_not_exact_at_a_zero_padded_border():
    for padding, effect in ((0, Effect.EXACT), (1, Effect.LOSSY)):
        model = convs(nn.Identity(), nn.Conv2d(8, 5, 3, padding=padding))
        with torch.no_grad():
            model[0].weight.copy_(torch.einsum("or,rcyx->ocyx", drawn(8, 3), drawn(3, 4, 3, 3)))
        start = capture(model, IMAGE)
        result = SvdShrink("0", 3)(start)
        assert result.effect is effect
        inside = (..., slice(1, -1), slice(1, -1)) if padding else ...
        formula = SvdShrink("0", 3, signs="as is")(start).program(IMAGE)
        assert relative_error(formula[inside], start(IMAGE)[inside]) < 1e-5
        with torch.no_grad():
            model[0].bias.zero_()
        assert SvdShrink("0", 3, signs="as is")(capture(model, IMAGE)).effect is Effect.EXACT


@pytest.mark.parametrize("refit", [False, True])
def test_signs_on_data_help_convolutions_too(refit: bool):
    start = capture(convs(nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1)), IMAGE)
    other = drawn(4, 4, 9, 8, seed=5)
    assert lost(SvdShrink("0", 6, refit=refit), start, other) < 0.9 * lost(
        SvdShrink("0", 6, signs="as is"), start, other
    )


def test_taps_that_see_nothing_but_padding_do_not_count():
    """On a map of one position, eight of nine taps never meet a value: the mean of the output is kept all the same."""
    pixels = drawn(50, 4, 1, 1)
    start = capture(convs(nn.ReLU(), nn.Conv2d(8, 5, 3, padding=1)), pixels)
    result = SvdShrink("0", 4)(start)
    assert torch.allclose(result.program(pixels).mean(0), start(pixels).mean(0), atol=1e-5)


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 8, 3), nn.Conv1d(8, 4, 3)
        self.c, self.d = nn.Linear(16, 12), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(F.leaky_relu_(self.a(x).clamp(max=3.0), 0.2)).relu_()
        return self.d(F.dropout(torch.tanh(self.c(x.flatten(1))), 0.5, self.training))


@pytest.mark.parametrize("layer", ["a", "b", "c"])
def test_functions_between_the_layers_are_seen(layer: str):
    x = drawn(64, 3, 8)
    start = capture(lively(Functional()).eval(), x)
    result = SvdShrink(layer, 2)(start)
    assert result.effect is Effect.LOSSY
    assert result.changes == 2
    assert torch.allclose(result.program(x).mean(0), start(x).mean(0), atol=1e-5) == (layer == "c")


# -- bookkeeping ------------------------------------------------------------------------------------------------


def test_layers_without_biases_get_one_only_where_it_is_needed():
    model = nn.Sequential(nn.Linear(24, 16, bias=False), nn.Identity(), nn.Linear(16, 6, bias=False)).eval()
    start = capture(model, DATA)
    assert all(".weight" in n for n, _ in nonempty(SvdShrink("0", 16)(start).program.graph_module.named_parameters()))
    names = [n for n, _ in SvdShrink("0", 8)(start).program.graph_module.named_parameters()]
    assert names == ["0.weight", "2.weight", "2.bias"]


def test_new_units_have_no_past_and_the_last_bias_keeps_its_own():
    result = SvdShrink("0", 16)(capture(dense(nn.ReLU()), DATA))
    assert set(result.origins) == {"0.weight", "0.bias", "2.weight"}
    assert all(nonempty(bool((i == -1).all()) for o in result.origins.values() for i in o.index.values()))


def test_frozen_layers_stay_frozen_and_keep_their_dtype():
    model = dense(nn.ReLU()).double()
    model[0].requires_grad_(requires_grad=False)
    result = SvdShrink("0", 8)(capture(model, DATA.double()))
    parameters = dict(result.program.graph_module.named_parameters())
    assert {n for n, p in parameters.items() if p.requires_grad} == {"2.weight", "2.bias"}
    assert {p.dtype for p in parameters.values()} == {torch.float64}


# -- refusals ---------------------------------------------------------------------------------------------------


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        return self.b(x) + x


class Twice(TwoReaders):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.b(self.a(x).relu()).relu())


class Tied(TwoReaders):
    def __init__(self) -> None:
        super().__init__()
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


class AlongTheWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(3, 6, 1), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu())


def refusal(layer: str, start: Program) -> str:
    result = SvdShrink(layer, 1)(start)
    assert result.changes == 0
    assert len(result.refusals) == 1
    return result.refusals[0].reason


@pytest.mark.parametrize(
    ("model", "layer", "reason"),
    [
        (TwoReaders(), "a", "%relu has 2 readers"),
        (Twice(), "a", "b: b is called 2 times"),
        (Twice(), "b", "b is called 2 times"),
        (Tied(), "a", "a.weight is b.weight as well"),
        (nn.Sequential(nn.Linear(6, 6), nn.ReLU()), "0", "%_1 is an output"),
        (nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 6)), "0", "neither pointwise nor"),
        (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 6)), "0", "run fold-bn first"),
    ],
)
def test_what_cannot_shrink_is_left_alone_with_a_reason(model: nn.Module, layer: str, reason: str):
    assert reason in refusal(layer, capture(model.eval(), drawn(4, 6)))


def test_other_layers_are_left_alone_with_a_reason():
    assert "%body_1 stands between: run fold-bn first" in refusal("body.0", program("Plain"))
    assert "it has 4 groups" in refusal("grouped", program("Grouped"))
    assert "mixes other dims" in refusal("a", capture(AlongTheWidth().eval(), drawn(2, 3, 6)))


def test_values_that_are_not_finite_are_left_alone():
    model = dense(nn.ReLU())
    data = DATA.clone()
    data[0, 0] = torch.inf
    assert "finite" in refusal("0", capture(model, data))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("layer='nothing',units=2", "no layer 'nothing'; there are: 0, 2"),
        ("layer='0',units=17", "0 can have from 1 to 16 units, not 17"),
        ("layer='0',units=0", "0 can have from 1 to 16 units, not 0"),
        ("layer='0',units=2,signs='random'", "'data' or 'as is'"),
    ],
)
def test_fields_without_a_meaning_are_errors(options: str, said: str):
    with pytest.raises(SpecError, match=said):
        parse(f"svd-shrink({options})")(capture(dense(nn.ReLU()), DATA))


def test_candidates_take_as_many_units_as_they_are_told_to():
    start = capture(
        nn.Sequential(nn.Linear(9, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(4, 9)
    )
    assert [(m.layer, m.units) for m in SvdShrink.candidates(start, lambda _: 2)] == [("0", 4), ("2", 3)]
    assert [m.units for m in SvdShrink.candidates(start, lambda _: 9)] == [1, 1]
