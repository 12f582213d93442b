"""Widening: copies that keep the outputs, through every structure, and copies that come apart in training."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.nn.utils.parametrizations import weight_norm

from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.passes import PruneChannels, Widen
from fxsurgery.program import Program
from fxsurgery.rewriting.duplication import duplicate, duplication
from fxsurgery.rewriting.resize import places
from nonempty import nonempty
from programs import program
from zoo import lively


def captured(model: nn.Module, *inputs: Tensor) -> Program:
    with torch.random.fork_rng(devices=[]):
        return capture(lively(model).eval(), inputs)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(x)))


def mlp() -> Program:
    return captured(Mlp(), torch.randn(6, 5))


def test_rows_are_copied_and_columns_split_by_positive_shares_that_sum_to_one():
    start = mlp()
    result = Widen((("a", 6),), seed=3)(start)
    before, after = start.graph_module, result.program.graph_module
    g = result.origins["a.weight"].index[0]
    assert sorted(set(g.tolist())) == [0, 1, 2, 3]
    assert len(g) == 10
    assert torch.equal(after.a.weight, before.a.weight[g])
    assert torch.equal(after.a.bias, before.a.bias[g])
    share = after.b.weight / before.b.weight[:, g]
    assert (share > 0).all()
    for unit in range(4):
        torch.testing.assert_close(share[:, g == unit].sum(1), torch.ones(3))
    assert torch.equal(g[g == 0], g[: int((g == 0).sum())])  # copies stand beside their unit
    assert result.error is not None
    assert result.error < 1e-6


def steps(start: Program, learning_rate: float = 0.1) -> nn.Module:
    model = start.trainable_copy().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate)
    for _ in range(3):
        optimizer.zero_grad()
        model(*start.example_inputs).square().mean().backward()
        optimizer.step()
    return model


def test_copies_come_apart_in_training_where_equal_shares_stay_equal_for_ever(monkeypatch: pytest.MonkeyPatch):
    move = Widen((("a", 4),))
    ours = steps(move(mlp()).program)
    assert (ours.a.weight[0::2] - ours.a.weight[1::2]).abs().max() > 1e-4
    start = mlp()
    monkeypatch.setattr(torch, "rand", lambda *shape, **_: torch.full(shape, 0.5, dtype=torch.float64))
    dead = steps(move(start).program)
    assert torch.equal(dead.a.weight[0::2], dead.a.weight[1::2])


def test_the_same_seed_gives_the_same_tensors_and_another_one_others():
    one, again, other = (Widen((("a", 2),), seed)(mlp()).program.graph_module for seed in (1, 1, 2))
    assert torch.equal(one.b.weight, again.b.weight)
    assert one.b.weight.shape != other.b.weight.shape or not torch.equal(one.b.weight, other.b.weight)


def test_batch_norm_statistics_of_the_copies_follow_the_same_steps():
    start = program("Residual")
    result = Widen((("conv1", 3), ("stem", 2)))(start).program
    wide, narrow = result.trainable_copy().train(), start.trainable_copy().train()
    for model in (wide, narrow):
        for _ in range(3):
            model(*start.example_inputs)
    assert wide.bn1.num_features == 9
    got, wanted = result.with_weights(wide).run_examples(), start.with_weights(narrow).run_examples()
    assert max(map(relative_error, got, wanted)) < 1e-5


def test_heads_and_feed_forward_widths_grow_and_a_residual_stream_under_layer_norm_only_as_a_whole():
    start = program("Attention")
    heads, hidden = Widen((("qkv", 1),))(start), Widen((("fc1", 5),))(start)
    assert heads.program.graph_module.qkv.out_features == 36
    assert hidden.program.graph_module.fc2.in_features == 17
    uneven, even = Widen((("patches", 3),))(start), Widen((("patches", 8),))(start)
    assert not uneven.changes
    assert "not all have the same number of copies" in uneven.refusals[0].reason
    assert even.program.graph_module.norm.normalized_shape == (16,)
    assert even.error is not None
    assert even.error < 1e-5


def test_group_norm_over_all_channels_grows_as_a_whole_and_one_over_groups_by_groups():
    start = program("GroupNormNet")
    assert not Widen((("b", 1),))(start).changes
    assert Widen((("b", 6),))(start).program.graph_module.norm2.num_channels == 12
    assert Widen((("a", 1),))(start).program.graph_module.norm1.num_groups == 5


class Tied(nn.Module):
    """The embedding is the output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 6)
        self.mix = nn.Linear(6, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.mix(self.embedding(x)) + self.embedding(x)))


def test_a_weight_that_both_makes_and_weighs_a_unit_is_left_alone_with_a_reason():
    start = captured(Tied(), torch.arange(6).reshape(2, 3))
    name = structure(start).groups[0].name
    result = Widen(((name, 2),))(start)
    assert not result.changes
    assert "count every copy" in result.refusals[0].reason


class Normalized(nn.Module):
    """A softmax over channels, and a sum over them, beside a plain way on."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.softmax(self.a(x), -1)) + self.b(x).sum(-1, keepdim=True)


@pytest.mark.parametrize("group", ["a", "b"])
def test_a_softmax_or_a_sum_over_units_is_refused(group: str):
    result = Widen(((group, 4),))(captured(Normalized(), torch.randn(2, 5)))
    assert not result.changes
    assert "every copy of" in result.refusals[0].reason


class Various(nn.Module):
    """A transposed and a grouped convolution, weight norm, functional weights, a pixel shuffle, a recurrent layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2, groups=2)
        self.normed = weight_norm(nn.Conv2d(8, 6, 1))
        self.weight = nn.Parameter(torch.randn(5, 6, 1, 1))
        self.recurrent = nn.GRU(5, 6, batch_first=True)
        self.matrix, self.offset = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(4))
        self.head = nn.Parameter(torch.randn(5, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(torch.tanh(self.depthwise(torch.tanh(self.grouped(self.stem(x))))))
        x = torch.tanh(F.conv2d(torch.tanh(self.normed(x)), self.weight))
        x = torch.tanh(self.recurrent(x.flatten(2).transpose(1, 2))[0].mean(1) @ self.matrix)
        return torch.addmm(self.offset, x, self.head)


def test_every_kind_of_consumer_splits_its_own_columns():
    start = captured(Various(), torch.randn(2, 3, 4, 4))
    grown = list[str]()
    for group in nonempty(structure(start).groups):
        result = Widen(((group.name, max(1, len(group.units) // 2)),))(start)
        if result.changes:
            assert result.error is not None
            assert result.error < 1e-5
            grown.append(group.name)
    assert {"stem", "grouped", "up", "normed", "weight", "matrix"} <= set(grown)


class CatFlip(nn.Module):
    """Channels beside themselves in reverse: the copies of the middle ones stand in two orders."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 4), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.a(x))
        return self.b(torch.cat([x, x.flip(-1)], -1))


def test_merged_runs_are_refused_where_no_order_of_the_copies_is_right():
    start = captured(CatFlip(), torch.randn(2, 5))
    (group,) = structure(start).groups
    inner = {int(u) for u in group.units[[3]]}  # the last one stands twice in a row in the middle
    counts = Widen(((group.name, 4),)).counts(start)
    edit = Editor(start)
    refusal = duplicate(edit, counts, torch.Generator())
    assert refusal is not None
    assert "more than one order" in refusal.reason
    assert not edit.changes
    assert inner <= set(duplication(start).blocked) | set(group.units.tolist())
    assert not Widen(((group.name, 4),))(start).changes


def test_places_repeats_whole_runs():
    counts, ids = torch.tensor([1, 2, 0, 1, 3]).numpy(), torch.tensor([1, 1, 2, 0, 4, 3]).numpy()
    index, copy = places(ids, counts)
    assert index.tolist() == [0, 1, 0, 1, 3, 4, 4, 4, 5]
    assert copy.tolist() == [0, 0, 1, 1, 0, 0, 1, 2, 0]


def test_a_widened_network_shrinks_again():
    start = mlp()
    wide = Widen((("a", 4),))(start).program
    again = PruneChannels((("a", (1, 3, 5, 7)),))(wide)
    assert again.program.graph_module.a.out_features == 4
    assert torch.equal(again.program.graph_module.a.weight, start.graph_module.a.weight)


def test_bad_options_are_named():
    with pytest.raises(SpecError, match="no channel group is named 'nope'; there are: a"):
        Widen((("nope", 1),))(mlp())
    with pytest.raises(SpecError, match="a: 0 units to add"):
        Widen((("a", 0),))(mlp())
    assert "no unit" in Widen(())(mlp()).refusals[0].reason


@pytest.mark.slow
def test_shufflenet_grows_but_for_runs_that_two_shuffles_merged():
    start = program("shufflenet_v2_x1_0")
    refused = list[str]()
    for group in nonempty(structure(start).groups):
        result = Widen(((group.name, len(group.units) // 4 or 1),))(start)
        if not result.changes:
            refused.append(group.name)
            assert "more than one order" in result.refusals[0].reason
    assert 0 < len(refused) < len(structure(start).groups) / 4


def test_candidates_add_as_many_as_they_are_told_to_in_multiples_under_a_layer_norm():
    first = (nn.Linear(5, 4), nn.LayerNorm(4), nn.ReLU())
    start = captured(nn.Sequential(*first, nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(3, 5))
    told = {step: dict(m.add[0] for m in Widen.candidates(start, lambda _, step=step: step)) for step in (1, 7)}
    assert told == {1: {"0": 4, "3": 1}, 7: {"0": 8, "3": 7}}


def test_candidates_are_tried_among_the_names_that_are_told():
    start = program("Residual")
    every = list(Widen.candidates(start))
    names = {name for move in every[::2] for name, _ in move.add}
    assert 0 < len(names) < len(every)
    assert nonempty(Widen.candidates(start, among=names)) == [m for m in every if m.add[0][0] in names]


class OneHead(nn.Module):
    """Attention with a single head: its queries and keys cannot be copied, its values can."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(5, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


def test_of_a_width_the_units_that_can_be_copied_are():
    start = captured(OneHead(), torch.randn(2, 7, 5))
    for seed in range(6):
        (move,) = Widen.candidates(start, lambda _: 1, seed=seed)
        assert move == Widen((("qkv", 1),), seed)
        wider = move(start).program.graph_module
        assert wider.get_parameter("qkv.weight").shape == (13, 5)
        assert wider.get_parameter("out.weight").shape == (3, 5)


def test_weights_that_a_hook_makes_keep_their_width():
    hooked = nn.utils.spectral_norm(nn.Conv2d(3, 16, 4, 2, 1))
    model = nn.Sequential(hooked, nn.LeakyReLU(0.2), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 2, 3))
    start = capture(model.eval(), torch.randn(2, 3, 16, 16))
    [move] = Widen.candidates(start)
    assert [name for name, _ in move.add] == ["2"]
    assert move(start).error < 1e-4


def test_more_units_than_any_memory_are_refused_at_once():
    with pytest.raises(SpecError, match="a: 1,000,000,000,000 units to add; it must be at most 65,536"):
        Widen((("a", 10**12),))(mlp())
