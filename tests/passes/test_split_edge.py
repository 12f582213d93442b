"""Splitting an edge: what keeps the function, what trains, and which sizes an edge can span."""

import re

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.analysis.activations import read_values
from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import SpecError
from fxsurgery.passes import SplitEdge
from fxsurgery.passes.split_edge import strides
from fxsurgery.program import Program
from fxsurgery.surgery import Effect
from nonempty import nonempty
from programs import program
from zoo import lively


class Signed(nn.Module):
    """A map of both signs, `v`, between convolutions; then one of a quarter of its places."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.second, self.head = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(self.bn(self.first(x)))).mean((2, 3)))


@pytest.fixture
def signed() -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = lively(Signed()).eval()
    return capture(model, torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0)))


def worst(got: Program, wanted: Program) -> float:
    return max(map(relative_error, got.run_examples(), wanted.run_examples()))


def test_an_operation_is_the_separable_convolution_of_the_paper(signed: Program):
    """Oracle: the formula, from the weights of the result."""
    result = SplitEdge("deepen", "bn", ops=1, zero="fresh")(signed).program
    own = dict(result.graph_module.named_parameters())
    v = read_values(result, ["bn"])["bn"]
    depth = F.conv2d(v.relu(), own["bn_deepened.0.depth.weight"], padding=1, groups=6)
    branch = F.conv2d(depth, own["bn_deepened.0.point.weight"]) / (1 + 1e-5) ** 0.5
    torch.testing.assert_close(read_values(result, ["add"])["add"], v + branch)
    assert sum(own[n].numel() for n in own if "deepened" in n) == 9 * 6 + 6 * 6 + 2 * 6


@pytest.mark.parametrize("node", ["bn", "tanh", "x"])
def test_deepening_is_exact_whatever_the_sign(signed: Program, node: str):
    result = SplitEdge("deepen", node)(signed)
    assert (result.effect, result.error) == (Effect.EXACT, 0.0)
    assert sum(isinstance(m, nn.BatchNorm2d) for m in result.program.graph_module.modules()) == 1 + 3


def test_an_activation_after_the_sum_keeps_the_function_only_of_a_non_negative_map(signed: Program):
    """The paper's condition: at bn, of both signs, three ops with empty branches compute relu."""
    lossy = SplitEdge("deepen", "bn", activation="after")(signed)
    v, after = (read_values(p, [n])[n] for p, n in ((signed, "bn"), (lossy.program, "relu_2")))
    assert lossy.effect is Effect.LOSSY
    assert (v < 0).any()
    assert torch.equal(after, v.relu())
    assert worst(lossy.program, signed) > 1e-2
    residual = program("Residual")
    exact = SplitEdge("deepen", "relu_1", activation="after")(residual)
    assert (exact.effect, exact.error) == (Effect.EXACT, 0.0)


def test_a_sum_and_a_pool_of_non_negative_maps_are_non_negative():
    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.pool, self.head = nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            return self.head(F.max_pool2d(self.pool(y), 2) + self.pool(torch.sigmoid(y))[..., ::2, ::2])

    start = capture(Pooled().eval(), torch.randn(2, 3, 10, 10))
    assert SplitEdge("deepen", "max_pool2d", activation="after")(start).effect is Effect.EXACT
    assert SplitEdge("deepen", "a", activation="after")(start).effect is Effect.LOSSY


@pytest.mark.parametrize("activation", ["before", "after"])
def test_widening_starts_the_whole_edge_at_zero_skip_included(signed: Program, activation: str):
    result = SplitEdge("widen", "second", "first", activation=activation)(signed)
    assert (result.effect, result.error) == (Effect.EXACT, 0.0)
    path = "second_widened"
    assert {"into.0.depth", "into.0.skip", "out.0.depth", "norm"} <= {
        n.removeprefix(f"{path}.") for n, _ in result.program.graph_module.named_modules() if n.startswith(path)
    }
    names = {str(n.target): n.name for n in result.program.nodes if n.op == "call_module"}
    norm = next(n for n in result.program.nodes if n.name == names[f"{path}.norm"])
    values = read_values(result.program, [norm.name, norm.all_input_nodes[0].name], training=True)
    edge, before = values[norm.name], values[norm.all_input_nodes[0].name]
    assert not edge.any()
    assert before.abs().max() > 0.1


def test_every_reader_of_the_target_reads_the_sum():
    start = program("TwoHeads")
    widened = SplitEdge("widen", "relu", "body_2")(start).program
    target = next(n for n in widened.nodes if n.name == "relu")
    [total] = target.users
    readers = {n.name for n in next(n for n in start.nodes if n.name == "relu").users}
    assert len(readers) == 2
    assert {n.name for n in total.users} == readers


@pytest.mark.parametrize("activation", ["before", "after"])
@pytest.mark.parametrize("mode", ["deepen", "widen"])
def test_everything_new_trains_from_the_second_step_on(signed: Program, mode: str, activation: str):
    source = "first" if mode == "widen" else None
    target = "tanh" if mode == "widen" else "relu"
    start = signed if mode == "widen" else program("Residual")
    result = SplitEdge(mode, target, source, activation=activation)(start).program
    model = result.trainable_copy().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        output = model(*result.example_inputs)
        (output - torch.linspace(-1, 1, output.numel()).view_as(output)).square().mean().backward()
        optimizer.step()
    assert [n for n, p in model.named_parameters() if "ened" in n and not p.grad.any()] == []


def test_the_papers_plain_start_changes_the_function(signed: Program):
    for move in (SplitEdge("deepen", "bn", zero="fresh"), SplitEdge("widen", "second", "bn", zero="fresh")):
        result = move(signed)
        assert result.effect is Effect.LOSSY
        assert worst(result.program, signed) > 1e-2


def test_the_new_node_has_the_size_and_channels_asked_for(signed: Program):
    result = SplitEdge("widen", "second", "x", channels=5, size=(12, 6))(signed).program
    read = next(n for n in result.nodes if str(n.target) == "second_widened.out.0.skip").all_input_nodes[0]
    assert read_values(result, [read.name])[read.name].shape == (2, 5, 12, 6)


@pytest.mark.parametrize(
    ("start", "end", "wanted"),
    [
        ((32, 32), (8, 8), [(2, 2), (2, 2)]),
        ((8, 8), (8, 8), [(1, 1)]),
        ((7, 7), (2, 2), [(2, 2), (2, 2)]),
        ((17, 16), (2, 2), [(2, 2), (2, 2), (2, 2), (2, 1)]),
        ((224, 224), (7, 7), [(2, 2)] * 5),
        ((8, 4), (2, 4), [(2, 1), (2, 1)]),
        ((8, 8), (16, 16), None),
        ((12, 12), (5, 5), None),
    ],
)
def test_an_edge_has_as_many_operations_as_halvings_and_at_least_one(start, end, wanted):
    assert strides(start, end) == wanted


def test_an_edge_over_a_ratio_of_eight_starts_with_three_operations():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(8), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    start = capture(model, torch.randn(2, 3, 16, 16))
    result = SplitEdge("widen", "_2", "_0")(start)
    paths = {str(n.target) for n in result.program.nodes}
    assert {f"2_widened.into.{i}.depth" for i in range(3)} | {"2_widened.out.0.depth"} <= paths
    assert result.effect is Effect.EXACT


def test_a_seed_gives_the_same_weights_and_leaves_the_global_state_alone(signed: Program):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    first, again, other = (
        SplitEdge("deepen", "bn", seed=seed)(signed).program.graph_module.get_parameter("bn_deepened.0.depth.weight")
        for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_new_parameters_have_the_type_of_the_map(signed: Program):
    result = SplitEdge("widen", "second", "bn")(signed.in_double()).program
    assert {p.dtype for p in result.graph_module.parameters()} == {torch.float64}


def test_upsampling_is_refused():
    start = program("Residual")
    result = SplitEdge("widen", "relu_2", "stem", size=(24, 24))(start)
    assert result.program is start
    assert "12x12 -> 24x24 -> 6x6 are not reached by halving" in result.refusals[0].reason


def test_what_is_no_feature_map_is_refused(signed: Program):
    for move, place in (
        (SplitEdge("deepen", "head"), "head"),
        (SplitEdge("widen", "head", "bn"), "head"),
        (SplitEdge("widen", "second", "x"), None),
    ):
        result = move(signed)
        assert [r.node for r in result.refusals] == ([place] if place else [])


def test_a_source_that_is_overwritten_is_refused_and_a_target_is_not():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1), nn.ReLU(inplace=True)).eval()
    start = capture(model, torch.randn(2, 3, 4, 4))
    assert "overwritten by %_1" in SplitEdge("widen", "_2", "_0")(start).refusals[0].reason
    for move in (SplitEdge("widen", "_2", "_1"), SplitEdge("deepen", "_0"), SplitEdge("deepen", "_3")):
        result = move(start).program
        model = result.trainable_copy().train()
        model(*result.example_inputs).square().sum().backward()
        assert move(start).effect is Effect.EXACT


@pytest.mark.parametrize(
    ("move", "said"),
    [
        (
            SplitEdge("deepen", "nothing"),
            "no node is named 'nothing'; choose one of the feature maps: x, first, bn, second, tanh",
        ),
        (SplitEdge("sideways", "bn"), "it must be 'deepen' or 'widen'"),
        (SplitEdge("deepen", "bn", zero="one"), "it must be 'keep' or 'fresh'"),
        (SplitEdge("deepen", "bn", activation="never"), "it must be 'before' or 'after'"),
        (SplitEdge("deepen", "bn", ops=0), "ops=, channels= and size= must be at least 1"),
        (SplitEdge("deepen", "bn", channels=4), "leave source=, size= and channels= out"),
        (SplitEdge("widen", "second"), "source="),
        (SplitEdge("widen", "bn", "second"), "%second does not run before %bn"),
        (SplitEdge("widen", "bn", "bn"), "an edge goes forward"),
    ],
)
def test_what_has_no_meaning_is_an_error(signed: Program, move: SplitEdge, said: str):
    with pytest.raises(SpecError, match=re.escape(said)):
        move(signed)


def test_one_op_becomes_four_and_seven(signed: Program):
    """App. B: an edge starts with 1 op and gets 3 at a time; B_op = 7."""
    result = SplitEdge("deepen", "bn", ops=1)(signed).program
    for end in ("add", "add_3"):
        result = SplitEdge("deepen", end)(result).program
    assert sum(str(n.target).endswith(".depth") for n in result.nodes) == 7
    assert worst(result, signed) == 0.0


def test_heads_channels_that_stand_last_and_indices_are_no_candidates():
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.rows, self.dense = nn.Conv2d(3, 8, 1), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.stem(x))
            x = F.relu(self.rows(x.permute(0, 2, 3, 1)))
            heads = self.dense(x.flatten(1, 2)).view(len(x), -1, 2, 4).transpose(1, 2)
            turned = heads + -heads.flip(-1)
            near = torch.clamp(torch.arange(36).view(1, 1, 6, 6).expand(len(x), -1, -1, -1), max=3)
            return turned.flatten(2) * near.float().mean()

    start = capture(Mixed().eval(), torch.randn(2, 3, 6, 6))
    moves = list(SplitEdge.candidates(start))
    assert {move.target for move in moves} == {"relu"}
    assert all(move(start).changes for move in nonempty(moves))
