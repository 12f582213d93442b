"""`prune-channels`: equal to the silenced program, and honest where it cannot be."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import DifferError, SpecError, StructureError
from fxsurgery.passes import PruneChannels
from fxsurgery.program import Program
from fxsurgery.proof import itself
from nonempty import nonempty
from programs import program, silenced
from zoo import REAL, ZOO, lively

IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8).sin()


def random_third(start: Program, leaves: str = "nothing", seed: int = 0) -> PruneChannels:
    """Drop a random 30 % of each group's units, but never all that some tensor has."""
    facts, rng = structure(start), np.random.default_rng(seed)
    chosen = {g.name: set(rng.permutation(len(g.units))[: int(0.3 * len(g.units))].tolist()) for g in facts.groups}
    while True:
        drop = tuple((name, tuple(sorted(picked))) for name, picked in chosen.items() if picked)
        move = PruneChannels(drop, leaves)
        if not (empty := set(facts.empty_dims(move.keep(start)))):
            return move
        for group in facts.groups:
            chosen[group.name] -= {i for i in chosen[group.name] if int(group.units[i]) in empty}


@pytest.mark.parametrize("name", ZOO)
def test_sliced_equals_silenced(name: str):
    start = program(name)
    move = random_third(start)
    result, reference = move(start), silenced(start, move.keep(start))
    assert result.error is not None
    assert result.error < 1e-5
    if reference is None or structure(start).inexact & set(np.flatnonzero(~move.keep(start)).tolist()):
        return  # no gate can stand for some of them; the proof above does without gates
    wanted, before = reference.run_examples(), start.run_examples()
    assert max(map(relative_error, result.program.run_examples(), wanted)) < 1e-5
    assert max(map(relative_error, wanted, before)) > 1e-3, "the channels must matter for this to mean anything"


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_sliced_equals_silenced_on_real_models(name: str):
    start = program(name)
    move = random_third(start)
    result = move(start)
    wanted, before = silenced(start, move.keep(start)).run_examples(), start.run_examples()
    assert max(map(relative_error, result.program.run_examples(), wanted)) < 1e-5
    assert max(map(relative_error, wanted, before)) > 1e-3


def zero_members(start: Program, move: PruneChannels) -> list[Tensor]:
    """A second reference, by other means: every slice of every member tensor set to 0."""
    keep, facts, model = move.keep(start), structure(start), start.trainable_copy()
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    with torch.no_grad():
        for name, dims in facts.tensors.items():
            for dim, ids in dims.items():
                tensors[name].index_fill_(dim, torch.from_numpy(np.flatnonzero(~keep[ids])), 0.0)
    return start.with_weights(model).run_examples()


@pytest.mark.parametrize("name", ["Plain", "Residual", "DenseCat", "ShuffleSplit", "Grouped", "FlattenLinear"])
def test_sliced_equals_zeroed_members(name: str):
    start = program(name)
    move = random_third(start, seed=1)
    assert max(map(relative_error, move(start).program.run_examples(), zero_members(start, move))) < 1e-5


def unpadded() -> nn.Module:
    return lively(
        nn.Sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.Conv2d(8, 6, 3),
            nn.BatchNorm2d(6),
            nn.Hardswish(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(24, 5),
        )
    ).eval()


def test_constant_of_a_removed_channel_moves_into_the_next_bias():
    start = capture(unpadded(), IMAGE)
    drop = tuple((g.name, (0, 2)) for g in structure(start).groups)
    folded, plain = PruneChannels(drop, "constant")(start), PruneChannels(drop, "nothing")(start)
    assert folded.error is not None
    assert folded.error < 1e-6
    assert not folded.refusals
    gap = max(map(relative_error, folded.program.run_examples(), plain.program.run_examples()))
    assert gap > 1e-2, "the constants must matter"


def test_borders_that_a_bias_cannot_reach_are_said():
    model = lively(nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1)))
    model[1].bias.data.fill_(1.0)
    result = PruneChannels((("0", (1,)),), "constant")(capture(model.eval(), IMAGE))
    assert result.error is None
    assert [(r.node, "zero-padded borders" in r.reason) for r in result.refusals] == [("_3", True)]
    whole = PruneChannels((("0", (1,)),), "nothing")(capture(model.eval(), IMAGE))
    inner = (slice(None), slice(None), slice(1, -1), slice(1, -1))
    folded, dropped = result.program(IMAGE)[inner], whole.program(IMAGE)[inner]
    assert relative_error(folded, dropped) > 1e-2


def test_unknown_group_and_position_are_named():
    start = program("Plain")
    name = structure(start).groups[0].name
    with pytest.raises(SpecError, match="no channel group is named 'nowhere'"):
        PruneChannels((("nowhere", (0,)),))(start)
    with pytest.raises(SpecError, match="there is no unit 999"):
        PruneChannels(((name, (999,)),))(start)


def test_emptying_a_layer_is_refused_with_its_name():
    start = program("Plain")
    group = structure(start).groups[0]
    with pytest.raises(StructureError, match=f"no channel would remain in {group.name}"):
        PruneChannels(((group.name, tuple(range(len(group.units)))),))(start)


def test_tensors_that_did_not_change_are_shared():
    start = program("Residual")
    move = next(iter(PruneChannels.candidates(start)))
    result = move(start).program
    before = {t.data_ptr() for t in start.graph_module.parameters()}
    after = {t.data_ptr() for t in result.graph_module.parameters()}
    assert before & after
    assert after - before


class Literal(nn.Module):
    """Shape constants in every spelling that is rewritten."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 12, 1), nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x.view(-1, 2, 6, 8, 8).flatten(1, 2).reshape((x.shape[0], 12, 8, 8))
        left, right = self.b(x).split(6, dim=1)
        y = left[:, 2:] + right[:, 2:]
        z = torch.cat([y, right.narrow(1, 0, 2)], 1)
        p, q = torch.chunk(z.unflatten(1, (3, 2)).flatten(1, 2), 2, 1)
        return self.c(torch.cat([p, q], 1)[..., :, :])


def test_shape_constants_follow_the_survivors():
    start = capture(lively(Literal()).eval(), IMAGE)
    for move in nonempty(PruneChannels.candidates(start)):
        result = move(start)
        assert result.error is not None
        assert result.error < 1e-5
        assert result.program(torch.cat([IMAGE, IMAGE])).shape == (4, 4, 8, 8)


def both(first: nn.Module, second: nn.Module, run) -> nn.Module:
    """A model of two 1x1 convs to 8 channels, joined by `run`, and a head."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = first, second
            self.head = nn.Conv2d(run.width, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(run(self.a(x), self.b(x)))

    return lively(Model()).eval()


def joined(width: int):
    def mark(run):
        run.width = width
        return run

    return mark


@joined(8)
def maxout(y: Tensor, z: Tensor) -> Tensor:
    return y.view(y.shape[0], 4, y.shape[1] // 4, 8, 8).flatten(1, 2) + z


@joined(8)
def by_the_others_width(y: Tensor, z: Tensor) -> Tensor:
    return torch.cat([z[:, : y.shape[1] // 2], z.split(y.shape[1] // 2, 1)[1]], 1) + torch.sort(z, 2).values


@joined(16)
def zeros_like(y: Tensor, z: Tensor) -> Tensor:
    return torch.cat([y, torch.zeros_like(y)], 1) + torch.cat([z, z], 1)


@joined(12)
def created_zeros(y: Tensor, z: Tensor) -> Tensor:
    return torch.cat([y + z, torch.zeros(y.size(0), 12 - y.size(1), 8, 8)], 1)


@joined(8)
def resized_to(y: Tensor, z: Tensor) -> Tensor:
    return nn.functional.interpolate(y, size=z.shape[-2:]) + z


@joined(8)
def counted(y: Tensor, z: Tensor) -> Tensor:
    return y * y.numel() / z.shape[1:][0]


@joined(8)
def by_keyword(y: Tensor, z: Tensor) -> Tensor:
    return torch.reshape(input=y, shape=(-1, 8, 8, 8)) + torch.cat(torch.chunk(input=z, chunks=2, dim=1), 1)


@joined(4)
def narrowed_from_the_end(y: Tensor, z: Tensor) -> Tensor:
    return y.narrow(1, -4, 4) + z[:, :4]


@joined(8)
def batch_in_the_shape(y: Tensor, z: Tensor) -> Tensor:
    return (y.view(y.shape[0] * 4, -1, 8, 8) * 2).view(y.shape[0], -1, 8, 8) + z


FOLLOWED = [maxout, by_the_others_width, zeros_like, resized_to, narrowed_from_the_end]
FROZEN = {created_zeros: "shape used as a number", counted: "shape used as a number", by_keyword: "view"}


@pytest.mark.parametrize("run", FOLLOWED, ids=lambda run: run.__name__)
def test_a_spelling_of_a_size_is_followed(run):
    start = capture(both(nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), run), IMAGE)
    for move in nonempty(PruneChannels.candidates(start)):
        result = move(start)
        assert result.changes
        assert result.program(torch.cat([IMAGE, IMAGE, IMAGE])).shape == (6, 5, 8, 8)
        assert result.error is not None
        assert result.error < 1e-5


@pytest.mark.parametrize(("run", "op"), FROZEN.items(), ids=lambda value: getattr(value, "__name__", value))
def test_a_spelling_of_a_size_that_is_not_followed_freezes_the_channels(run, op: str):
    start = capture(both(nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), run), IMAGE)
    assert op in {freeze.op for freeze in structure(start).freezes}
    assert list(PruneChannels.candidates(start)) == []


def test_sizes_of_the_image_do_not_freeze_its_channels():
    start = capture(both(nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), resized_to), IMAGE)
    assert [len(g.units) for g in structure(start).groups] == [8]


def test_a_shape_that_holds_the_batch_and_the_channels_follows_both():
    start = capture(both(nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), batch_in_the_shape), IMAGE)
    result = PruneChannels((("a", (0,)),))(start)
    assert result.error is not None
    assert result.error < 1e-5
    assert result.program.graph_module.get_parameter("a.weight").shape == (4, 3, 1, 1)
    assert result.program(torch.cat([IMAGE, IMAGE[:1]])).shape == (3, 5, 8, 8)


class OneBatch(nn.Module):
    """Takes fewer channels at the example batch size alone."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != 8 and len(x) != len(IMAGE):
            raise ValueError("too few channels for this batch")
        return x.relu()


def test_a_result_that_runs_at_one_batch_size_only_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), OneBatch(), nn.Conv2d(8, 4, 1))
    start = capture(lively(model).eval(), IMAGE, leaf_modules=(OneBatch,))
    [move] = PruneChannels.candidates(start)
    result = move(start)
    assert result.program is start
    assert [r.node for r in result.refusals] == ["output"]
    assert "would not run, or could not be verified: too few channels for this batch" in result.refusals[0].reason


def test_tied_weights_stay_tied():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1))
    model[3].weight = model[1].weight
    start = capture(lively(model).eval(), IMAGE)
    [move] = PruneChannels.candidates(start)
    small = move(start).program.graph_module
    assert small.get_submodule("3").weight is small.get_submodule("1").weight


def test_what_no_gate_can_stand_for_is_proven_as_well():
    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(x) * self.a(x).exp().sum(1, keepdim=True)

    start = capture(lively(Sums()).eval(), IMAGE)
    [move] = PruneChannels.candidates(start)
    assert silenced(start, move.keep(start)) is None
    assert move(start).error < 1e-6


class Amplified(nn.Module):
    """Rounding of the first layer's sums, a million times over."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(1e6 * self.b(self.a(x)))


def test_grown_rounding_is_told_from_a_mistake_in_float64():
    start = capture(lively(Amplified()).eval(), IMAGE)
    result = PruneChannels((("a", (0, 5, 7, 11, 30)),))(start)
    assert result.error < 1e-6
    assert "in float64" in result.refusals[-1].reason


def test_a_mistake_shows_in_float64_as_well(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fxsurgery.passes.prune_channels.masked_reference", lambda program, *_: itself(program))
    start = capture(lively(Amplified()).eval(), IMAGE)
    with pytest.raises(DifferError, match="promised equal outputs"):
        PruneChannels((("a", (0, 5)),))(start)


def test_an_unflatten_layer_follows():
    model = nn.Sequential(
        nn.Linear(5, 32), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 6, 2), nn.ReLU(), nn.Conv2d(6, 2, 1)
    )
    start = capture(lively(model).eval(), torch.randn(2, 5))
    (first, *_) = structure(start).groups
    result = PruneChannels(((first.name, (1, 4)),))(start)
    assert result.error is not None
    assert result.error < 1e-5
    assert result.program.graph_module.get_submodule("1").unflattened_size == (6, 2, 2)
    assert model[1].unflattened_size == (8, 2, 2)


def test_constants_move_into_the_bias_of_a_weight_normed_layer():
    second = nn.utils.parametrizations.weight_norm(nn.Linear(8, 6))
    model = nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), second, nn.ReLU(), nn.Linear(6, 2))
    start = capture(lively(model).eval(), torch.randn(3, 4))
    result = PruneChannels((("0", (1, 5)), ("2", (0,))), "constant")(start)
    assert result.error is not None
    assert result.error < 1e-5
    assert not result.refusals


class Noisy(nn.Module):
    """A variational autoencoder that draws in eval mode as well."""

    def __init__(self):
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(6, 10), nn.ReLU())
        self.mean, self.spread, self.decode = nn.Linear(10, 4), nn.Linear(10, 4), nn.Linear(4, 6)

    def forward(self, x):
        x = self.encode(x)
        return self.decode(self.mean(x) + torch.randn_like(self.spread(x)) * self.spread(x).exp())


def test_a_model_that_draws_is_compared_on_the_same_draws():
    start = capture(lively(Noisy()).eval(), torch.randn(3, 6))
    assert [len(g.units) for g in structure(start).groups] == [10]
    state = torch.random.get_rng_state()
    result = PruneChannels((("encode.0", (1, 2, 7)),))(start)
    assert result.error is not None
    assert result.error < 1e-5
    assert torch.equal(state, torch.random.get_rng_state())


class GammaPruned(nn.Module):
    """A chain whose channels 1 and 4 a norm has silenced, through all that a constant passes on its way."""

    def __init__(self, padding: int = 0) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6)
        self.depthwise, self.n2 = nn.Conv2d(6, 6, 3, groups=6, padding=padding), nn.BatchNorm2d(6)
        self.other, self.head = nn.Conv2d(3, 2, 3, padding=padding), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.n2(self.depthwise(torch.sigmoid(self.n(self.a(x))))))
        return self.head(F.avg_pool2d(torch.cat([y, self.other(x)], 1), 2))


@pytest.mark.parametrize("padding", [0, 1])
def test_a_channel_that_a_norm_has_silenced_goes_without_a_trace_but_at_padded_borders(padding: int):
    """f(beta) of the pruned norm, through a depthwise convolution, a second norm, a concatenation and a pool."""
    model = lively(GammaPruned(padding)).eval()
    with torch.no_grad():
        model.n.weight[[1, 4]], model.n.bias[[1, 4]] = 0.0, torch.tensor([2.0, -1.5])
        model.n2.weight[[1, 4]], model.n2.bias[[1, 4]] = torch.tensor([1.5, -2.0]), torch.tensor([0.4, 0.7])
    images = torch.randn(2, 3, 12, 12)
    result = PruneChannels((("a", (1, 4)),), "constant")(capture(model, images))
    got, wanted = result.program(images), model(images)
    if padding:  # a zero beyond the border is not f(beta)
        assert "borders" in result.refusals[0].reason or "not constant" in result.refusals[0].reason
        got, wanted = got[..., 1:-1, 1:-1], wanted[..., 1:-1, 1:-1]
    assert relative_error(got, wanted) < 1e-5
    silent = PruneChannels((("a", (1, 4)),))(capture(model, images)).program(images)
    assert relative_error(silent, model(images)) > 0.05


def test_nothing_to_remove_is_said():
    for drop in ((), (("0", ()),)):
        result = PruneChannels(drop)(capture(unpadded(), IMAGE))
        assert (result.changes, result.refusals[0].reason) == (0, "there is no channel to remove")


def test_what_is_left_and_is_no_constant_is_told_from_borders():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 2))
    start = capture(lively(model).eval(), torch.arange(6).reshape(2, 3))
    result = PruneChannels((("0", (0, 3)),), "constant")(start)
    reason = "the contribution of removed channels is not constant"
    assert [(r.node, r.reason) for r in result.refusals] == [("_1", reason)]


def test_candidates_take_as_many_as_they_are_told_to_and_leave_one():
    start = program("Plain")
    sizes = {g.name: len(g.units) for g in structure(start).groups}
    few, many = ([m.drop[0] for m in PruneChannels.candidates(start, step)] for step in (lambda _: 2, lambda n: n + 1))
    assert {name: len(positions) for name, positions in few} == dict.fromkeys(sizes, 2)
    assert {name: len(positions) for name, positions in many} == {n: size - 1 for n, size in nonempty(sizes.items())}


class Mixed(nn.Module):
    """What a channel leaves is read by an einsum, which has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.matrix, self.head = nn.Conv2d(3, 16, 3), nn.Parameter(torch.randn(8, 8)), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("bchw,cd->bdhw", F.glu(self.conv(x), 1), self.matrix).mean((2, 3)))


class Shifted(nn.Module):
    """A map that is written into after it was made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).relu()
        z = torch.zeros_like(y)
        z[:, :, 1:] = y[:, :, :-1]
        return self.last(z)


@pytest.mark.parametrize(
    ("build", "name", "said"),
    [(Mixed, "conv", "read by something other than a layer with a bias"), (Shifted, "first", "is not constant")],
)
def test_a_constant_that_no_bias_can_take_over_is_said(build: type[nn.Module], name: str, said: str):
    start = capture(lively(build()).eval(), IMAGE)
    result = PruneChannels(((name, (4, 5)),), leaves="constant")(start)
    assert any(said in refusal.reason for refusal in result.refusals)
    assert result.error is None
    exact = PruneChannels(((name, (4, 5)),))(start)
    assert exact.error is not None
