"""An unknown operator, and the effect of one declaration."""

import pytest
import torch
from torch import Tensor, fx, nn

from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.pointwise import pointwise as facts_of
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.ops import registry
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules.pointwise import pointwise
from fxsurgery.passes import Deepen, PruneChannels
from fxsurgery.program import Program


@torch.library.custom_op("fxsurgery_tests::clipped", mutates_args=())
def clipped(x: Tensor) -> Tensor:
    return x.clamp(0.0, 1.0)


@clipped.register_fake
def _(x):
    return torch.empty_like(x)


@torch.library.custom_op("fxsurgery_tests::scores", mutates_args=())
def scores(x: Tensor) -> Tensor:
    return torch.einsum("nci,ncj->nij", x, x)


@scores.register_fake
def _(x):
    return x.new_empty(x.shape[0], x.shape[2], x.shape[2])


class Net(nn.Module):
    def __init__(self, function=torch.ops.fxsurgery_tests.clipped):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)
        self.function = function

    def forward(self, x):
        return self.second(self.function(self.first(x)))


CLIPPED = Operator(
    name="clipped",
    kind=Kind.POINTWISE,
    functions=(torch.ops.fxsurgery_tests.clipped, torch.ops.fxsurgery_tests.clipped.default),
    aten=("fxsurgery_tests::clipped",),
    role="activation",
    rule=pointwise,
)
SCORES = Operator(
    name="scores",
    kind=Kind.CONTRACTION,
    functions=(torch.ops.fxsurgery_tests.scores,),
    aten=("fxsurgery_tests::scores",),
    macs=lambda args, result: float(result.numel() * args[0].shape[1]),
)


@pytest.fixture
def program():
    torch.manual_seed(0)
    return capture(Net().eval(), torch.rand(2, 3, 8, 8))


def node_of(program):
    return next(n for n in program.nodes if n.op == "call_function")


def test_one_declaration_lets_channels_pass(program):
    assert not structure(program).groups
    with registry.declared(CLIPPED):
        assert [len(group.units) for group in structure(program).groups] == [8]
        assert cost(program).unknown_macs == ()
        pruned = PruneChannels((("first", (0, 5)),))(program).program
    assert pruned.graph_module.get_submodule("first").out_channels == 6
    assert not structure(program).groups


def test_one_declaration_makes_a_site_of_deepen(program):
    node = node_of(program)
    assert node.name not in {move.after for move in Deepen.candidates(program)}
    with registry.declared(CLIPPED):
        [move] = [move for move in Deepen.candidates(program) if move.after == node.name]
        assert facts_of(program, node).is_idempotent
        result = move(program)
        assert len(result.program.nodes) == len(program.nodes) + 2
    assert facts_of(program, node) is None


def test_one_declaration_tells_macs():
    graph = fx.Graph()
    root = nn.Module()
    root.conv = nn.Conv1d(3, 4, 1)
    x = graph.call_module("conv", (graph.placeholder("x"),))
    graph.output(graph.call_function(torch.ops.fxsurgery_tests.scores, (x,)))
    program = Program(fx.GraphModule(root, graph).eval(), (torch.rand(2, 3, 6),))
    assert "fxsurgery_tests::scores" in cost(program).unknown_macs
    without = cost(program).macs
    with registry.declared(SCORES):
        assert cost(program).unknown_macs == ()
        assert cost(program).macs == without + 6 * 6 * 4
