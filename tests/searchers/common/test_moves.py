"""Random sequences of moves on nets of every kind, and what each operation finds, takes away and refuses."""

import copy
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.layer_widths import layer_widths
from fxsurgery.capture import capture
from fxsurgery.errors import SurgeryError
from fxsurgery.match import Refusal
from fxsurgery.passes import AddConvCell, PruneChannels, RemoveLayer, SvdShrink, Widen, parse, replay
from fxsurgery.program import Program
from fxsurgery.searchers.common.moves import OPERATIONS, Amounts, apply_move, moves
from fxsurgery.searchers.common.width_constraints import WidthConstraints
from fxsurgery.searchers.ectonas.start_nets import START_NETS
from nonempty import nonempty
from programs import program
from runs_counted import Runs
from zoo import ZOO, lively

SHAPE = (1, 9, 9)


class Inception(nn.Module):
    """Two branches of other kernels and a pooled one, joined, then dense layers on what is left of the map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.point, self.wide, self.pooled = nn.Conv2d(6, 4, 1), nn.Conv2d(6, 5, 3, padding=1), nn.Conv2d(6, 3, 1)
        self.norm = nn.BatchNorm2d(12)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(12 * 16, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        pooled = self.pooled(F.max_pool2d(x, 3, stride=1, padding=1))
        joined = torch.relu(self.norm(torch.cat([self.point(x), self.wide(x), pooled], 1)))
        return self.head(F.max_pool2d(joined, 2))


class Tokens(nn.Module):
    """Embedded tokens, attention, a feed-forward part, and a class of each sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.feed = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.first(x)).reshape(batch, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, 8)
        x = x + self.out(mixed)
        return self.head((x + self.feed(self.second(x))).mean(1))


class Recurrent(nn.Module):
    """A GRU over a sequence of vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.hidden, self.head = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 7), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(self.gru(x)[0][:, -1])))


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def captured(build: Callable[[], nn.Module], *inputs: Tensor) -> Program:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return capture(lively(build()).eval(), inputs)


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 3))


STARTS: dict[str, Callable[[], Program]] = {
    **{
        name: lambda build=build: captured(lambda: build(SHAPE), drawn(6, *SHAPE)) for name, build in START_NETS.items()
    },
    **{name: lambda name=name: program(name) for name in ("Residual", "DenseCat", "InvertedResidual", "Conv1dNet")},
    **{name: lambda name=name: program(name) for name in ("Attention", "PooledLinear", "ShuffleSplit", "Grouped")},
    "Inception": lambda: captured(Inception, drawn(6, 3, 8, 8)),
    "Tokens": lambda: captured(Tokens, torch.randint(11, (6, 5), generator=torch.Generator().manual_seed(0))),
    "Recurrent": lambda: captured(Recurrent, drawn(6, 4, 5)),
    "vectors": lambda: captured(mlp, drawn(6, 5)),
}
"""What sequences of moves start from."""


def architecture(of: Program) -> tuple[str, dict[str, tuple[int, ...]]]:
    return of.text(), {name: tuple(p.shape) for name, p in of.graph_module.named_parameters()}


def addresses(of: Program) -> dict[str, int]:
    return {name: p.data_ptr() for name, p in of.graph_module.named_parameters()}


def check_runs(child: Program, start: Program) -> None:
    """At two batch sizes, with outputs of the shapes that the start has, and finite."""
    for samples in (2, 7):
        inputs = start.examples.resized(samples)
        got, wanted = child.outputs(inputs), start.outputs(inputs)
        assert [o.shape for o in nonempty(got)] == [o.shape for o in wanted]
        assert all(o.isfinite().all() for o in nonempty(got))


def check_trains(child: Program) -> None:
    """One step in train mode changes it, and leaves the program alone."""
    model = child.trainable_copy().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    output = model(*child.examples.clone().args)
    torch.stack([o.square().mean() for o in (output if isinstance(output, tuple) else (output,))]).sum().backward()
    optimizer.step()
    parameters = dict(child.graph_module.named_parameters())
    assert all(p.isfinite().all() for p in nonempty(model.parameters()))
    assert any(not torch.equal(p, parameters[name]) for name, p in model.named_parameters())


def walk(start: Program, count: int, seed: int) -> tuple[Program, Counter[str]]:
    """So many random moves in a row, each checked."""
    rng, current, told = random.Random(seed), start, Counter[str]()
    for step in nonempty(range(count)):
        names = [name for name in OPERATIONS if name != "identity"]
        rng.shuffle(names)
        found = next(((n, m) for n in names if (m := moves(current, n, seed=step))), None)
        if found is None:
            break
        operation, move = found[0], rng.choice(found[1])
        state, text = copy.deepcopy(current.graph_module.state_dict()), current.text()
        child = apply_move(current, move)
        assert current.text() == text
        assert all(torch.equal(t, state[name]) for name, t in nonempty(current.graph_module.state_dict().items()))
        if isinstance(child, Refusal):
            told[f"{operation}: {child}"] += 1
            continue
        told[operation] += 1
        assert parse(str(move)) == move
        check_runs(child, start)
        check_trains(child)
        current = child
    assert architecture(replay(current.log, start)) == architecture(current)
    assert max(len(node.name) for node in current.nodes) < max(len(node.name) for node in start.nodes) + 24
    return current, told


@pytest.mark.parametrize("name", STARTS)
def test_moves_in_a_row_keep_a_network_that_runs_trains_and_replays(name: str):
    _, told = walk(STARTS[name](), 6, seed=0)
    assert sum(told.values()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("name", STARTS)
def test_thirty_moves_in_a_row_do_too(name: str, seed: int):
    _, told = walk(STARTS[name](), 30, seed)
    assert sum(told.values()) > 1  # a walk may end early: where all cells are gone, nothing is left to change


def named(start: Program, operation: str, **amounts: float) -> list[str]:
    return [str(move) for move in moves(start, operation, Amounts(**amounts))]  # type: ignore[arg-type]


def after(start: Program, *operations: str, seed: int = 0) -> Program:
    """The program after the first move of each operation, one after the other."""
    for operation in nonempty(operations):
        child = apply_move(start, moves(start, operation, seed=seed)[0])
        assert isinstance(child, Program)
        start = child
    return start


def parameters(of: Program) -> int:
    return sum(p.numel() for p in of.graph_module.parameters())


def count(of: Program, kind: type[nn.Module]) -> int:
    return sum(1 for _ in of.calls(kind))


def test_a_feed_forward_net_becomes_a_convolutional_one_that_can_be_widened():
    """An image of one channel is given a cell of one channel, which is in no channel group."""
    start = STARTS["small-ffnn"]()
    cnn = after(start, "add-cell", "add-channels", "add-channels", "remove-channels")
    ((_, conv),) = cnn.calls(nn.Conv2d)
    assert (conv.in_channels, conv.out_channels) == (1, 1 + 3 + 3 - 3)
    assert architecture(replay(cnn.log, start)) == architecture(cnn)
    back = after(cnn, "remove-cell")
    assert architecture(back) == architecture(start)


def test_a_convolutional_net_without_its_last_cell_is_a_feed_forward_one_that_sees_the_image():
    start = STARTS["small-cnn"]()
    ffnn = after(start, "remove-cell", "remove-cell", "remove-cell")
    assert (count(ffnn, nn.Conv2d), moves(ffnn, "remove-cell")) == (0, [])
    first, _ = (layer for _, layer in ffnn.calls(nn.Linear))
    assert first.in_features == SHAPE[1] * SHAPE[2]
    again = after(ffnn, "add-cell", "add-channels")
    assert count(again, nn.Conv2d) == 1
    check_runs(again, start)
    check_trains(again)


def test_a_cell_goes_after_each_cell_with_either_pool_and_never_into_one():
    start = STARTS["medium-cnn"]()
    found = [(m.after, m.kind, m.ceil) for m in moves(start, "add-cell") if isinstance(m, AddConvCell)]
    assert found == [
        ("cell1_relu", "average", True), ("cell1_relu", "max", True),
        ("cell2_relu", "average", True), ("cell2_relu", "max", True),
    ]  # fmt: skip
    kinds = [type(of).__name__ for _, of in after(start, "add-cell").calls(nn.Module)]
    assert kinds[:8] == ["Conv2d", "AvgPool2d", "BatchNorm2d", "ReLU"] * 2


def test_widths_change_by_the_step_or_by_a_share_and_the_last_unit_stays():
    start = captured(lambda: START_NETS["large-cnn"](SHAPE), drawn(6, *SHAPE))
    widened = [dict(m.add) for m in moves(start, "add-units") if isinstance(m, Widen)]
    assert widened == [{"dense1": 10}, {"dense2": 5}, {"dense3": 2}]
    assert named(start, "add-channels") == ["widen(add=(('cell1.conv', 3),),seed=0)"]
    (narrowed,) = moves(start, "remove-channels")
    assert isinstance(narrowed, PruneChannels)
    assert [len(positions) for _, positions in narrowed.drop] == [2]
    merged = [(m.layer, m.units) for m in moves(start, "remove-units") if isinstance(m, SvdShrink)]
    assert merged == [("dense2", 45), ("dense3", 8)]  # dense1 has 75 inputs: 90 units are no singular vectors
    bold = [(m.layer, m.units) for m in moves(start, "remove-units", Amounts(units=60)) if isinstance(m, SvdShrink)]
    assert ("dense3", 1) in bold
    wide = captured(mlp, drawn(6, 5))
    assert "widen(add=(('0', 3),),seed=0)" in named(wide, "add-units", share=0.5)


def test_units_that_several_read_are_pruned():
    """A residual stream and heads have no single reader; the feed-forward part has."""
    found = moves(STARTS["Tokens"](), "remove-units", Amounts(units=10))
    assert {type(m) for m in found} == {SvdShrink, PruneChannels}
    assert [m for m in found if isinstance(m, SvdShrink)] == [SvdShrink("feed.0", 6)]


def test_under_a_layer_norm_units_are_doubled():
    steps = {name: more for m in moves(STARTS["Tokens"](), "add-units") if isinstance(m, Widen) for name, more in m.add}
    assert steps["embed"] == 8
    assert steps["feed.0"] == 2


def test_channels_are_what_convolutions_give_and_units_what_others_do():
    start = STARTS["Inception"]()
    for operation in ("add", "remove"):
        channels, units = (" ".join(named(start, f"{operation}-{kind}")) for kind in ("channels", "units"))
        assert "stem.0" in channels
        assert "head.1" not in channels
        assert "head.1" in units
        assert "stem.0" not in units


def test_dense_layers_and_cells_are_told_apart():
    start = STARTS["Inception"]()
    dense, cells = ([m for m in moves(start, f"remove-{k}") if isinstance(m, RemoveLayer)] for k in ("dense", "cell"))
    assert [m.layer for m in dense] == ["head_1"]
    assert {m.layer for m in cells} >= {"stem_0"}
    assert named(start, "add-dense") == ["deepen(after='head_2',kernel=3,norm='auto')"]
    blocks = [m.layer for m in moves(STARTS["Residual"](), "remove-cell") if isinstance(m, RemoveLayer)]
    assert "add" in blocks


def test_what_small_scales_leave_goes_into_biases_where_there_are_some():
    (move, *_) = (m for m in moves(STARTS["medium-cnn"](), "remove-channels") if isinstance(m, PruneChannels))
    assert move.leaves == "constant"
    without = [m for m in moves(STARTS["Residual"](), "remove-channels") if isinstance(m, PruneChannels)]
    assert "nothing" in {m.leaves for m in without}


def test_places_are_drawn_by_the_seed_alone():
    start = program("DenseCat")
    assert len(moves(start, "remove-channels")) > 2
    draws = [named(start, "remove-channels", places=1), *([str(*moves(start, "remove-channels", Amounts(places=1), s))]
             for s in range(12))]  # fmt: skip
    assert draws[0] == draws[1]
    assert len(set(map(str, draws))) > 1
    state = torch.get_rng_state()
    for operation in nonempty(OPERATIONS):
        assert moves(start, operation, seed=3) == moves(start, operation, seed=3)
    assert torch.equal(torch.get_rng_state(), state)


def test_moves_are_in_the_order_of_their_places():
    start = program("DenseCat")
    every = named(start, "remove-channels", places=99)
    few = named(start, "remove-channels", places=2)
    assert [m for m in every if m in few] == few


@pytest.mark.parametrize("operation", [name for name in OPERATIONS if name != "identity"])
def test_a_child_shares_with_its_parent_all_that_it_did_not_change(operation: str):
    start = captured(lambda: START_NETS["medium-cnn"](SHAPE), drawn(6, *SHAPE))
    child = apply_move(start, moves(start, operation)[0])
    assert isinstance(child, Program)
    before, now = dict(start.graph_module.named_parameters()), dict(child.graph_module.named_parameters())
    same = {n for n, p in now.items() if n in before and torch.equal(p, before[n])}
    assert same
    assert not [n for n in same if now[n].data_ptr() != before[n].data_ptr()]
    assert len(same) >= len(now) - 6


def test_the_identity_has_no_moves_and_no_other_name_is_an_operation():
    assert moves(STARTS["vectors"](), "identity") == []
    with pytest.raises(SurgeryError, match="add-cell"):
        moves(STARTS["vectors"](), "add-layer")


@pytest.mark.parametrize("wrong", [{"channels": 0}, {"units": -1}, {"places": 0}, {"share": 1.5}])
def test_amounts_without_a_meaning_are_refused(wrong: dict[str, float]):
    with pytest.raises(SurgeryError, match=next(iter(wrong))):
        Amounts(**wrong)  # type: ignore[arg-type]


def test_refusals_and_degenerates_are_told_in_words_that_can_be_counted():
    start = STARTS["small-cnn"]()
    told = Counter(
        refused.reason
        for move in (
            *(AddConvCell(f"cell{n}_relu", 5, "average") for n in (1, 3)),
            *(RemoveLayer(name) for name in ("output", "cell1_pool", "cell2_norm")),
            *(PruneChannels(((f"cell{n}.conv", tuple(range(3 * n))),)) for n in (1, 2, 3)),
            *(SvdShrink(name, 0) for name in ("dense1",)),
        )
        if isinstance(refused := apply_move(start, move), Refusal)
    )
    assert told == {
        "the program returns its output": 1,
        "it is neither a call of a linear layer or convolution nor a sum": 2,
        "no channel would remain in a layer": 3,
        "a layer can have from n to n units, not n": 1,
    }


@pytest.mark.parametrize("place", ["cell1.conv.weight", "output.bias"])
def test_what_is_not_finite_is_no_candidate(place: str):
    model = STARTS["small-cnn"]().trainable_copy()
    with torch.no_grad():
        model.get_parameter(place).view(-1)[0] = torch.nan
    start = replace(STARTS["small-cnn"](), graph_module=model.eval())
    for operation in ("add-units", "remove-cell", "remove-channels", "add-cell"):
        refused = [child for move in moves(start, operation) if isinstance(child := apply_move(start, move), Refusal)]
        told = {refusal.reason for refusal in refused}
        assert told <= {"an output is not finite", "a weight is not finite"}
        assert told or operation == "remove-cell"


def test_zero_padded_channels_stand_in_the_way_of_moves_and_end_no_search():
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
            self.head = nn.Linear(12, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = F.pad(torch.relu(self.a(x)), (0, 0, 0, 0, 2, 2))
            return self.head(torch.relu(self.b(x)).mean((2, 3)))

    start = capture(lively(Padded()).eval(), torch.randn(2, *SHAPE))
    found = [apply_move(start, move) for operation in OPERATIONS for move in moves(start, operation)]
    assert all(isinstance(child, Program) for child in nonempty(found))


def test_a_child_runs_in_its_proof_alone(runs: Runs):
    start = captured(mlp, drawn(2, 5))
    runs.clear()
    child = apply_move(start, nonempty(moves(start, "add-units"))[0])
    assert isinstance(child, Program)
    assert runs.samples(child) == [start.examples.batch, 1]


def widths_of(start: Program) -> dict[str, int]:
    return {str(node.target): layer.weight.shape[0] for node, layer in start.calls(nn.Conv2d, nn.Linear)}


@pytest.mark.parametrize("name", ["Residual", "Plain", "FlattenLinear", "DenseCat", "PooledLinear"])
def test_no_move_changes_or_removes_a_layer_that_is_kept(name: str):
    model, start = ZOO[name](), program(name)
    layer = next(w.name for w in layer_widths(start).values() if w.produces and w.groups)
    constraints, amounts = WidthConstraints.of(model, start, (layer,)), Amounts(channels=1, units=1, places=100)
    touched, before = 0, widths_of(start)
    everything = nonempty(move for operation in OPERATIONS for move in moves(start, operation, amounts))
    allowed = [m for operation in OPERATIONS for m in moves(start, operation, amounts, constraints=constraints)]
    assert not set(map(str, allowed)) - set(map(str, everything))
    for move in everything:
        child = apply_move(start, move)
        if isinstance(child, Refusal):
            continue
        is_untouched = widths_of(child).get(layer) == before[layer]
        assert is_untouched == (move in allowed), move
        touched += not is_untouched
    assert touched >= 2
