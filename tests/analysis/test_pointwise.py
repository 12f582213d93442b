"""What is true of functions of single entries: found by running them, with the options that they have."""

import math

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.pointwise import calls_of, only_reader, pointwise
from fxsurgery.capture import capture
from fxsurgery.program import Program
from programs import program


class Applies(nn.Module):
    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.function(self.a(x)))


def known(function):
    start = capture(Applies(function).eval(), torch.randn(2, 3))
    return pointwise(start, start.nodes[2])


@pytest.mark.parametrize(
    ("function", "identity", "idempotent", "zero", "non_negative"),
    [
        (nn.ReLU(), False, True, True, True),
        (F.relu, False, True, True, True),
        (lambda x: x.relu(), False, True, True, True),
        (nn.ReLU6(), False, True, True, True),
        (nn.LeakyReLU(0.1), False, False, True, False),
        (nn.LeakyReLU(1.0), True, True, True, False),
        (nn.GELU(), False, False, True, False),
        (nn.Sigmoid(), False, False, False, True),
        (nn.Hardtanh(-2, 2), False, True, True, False),
        (nn.Softplus(), False, False, False, True),
        (nn.Identity(), True, True, True, False),
        (nn.Dropout(0.3), True, True, True, False),
        (lambda x: F.dropout(x, 0.3, training=False), True, True, True, False),
        (lambda x: torch.clamp(x, min=0.5), False, True, False, True),
        (nn.Hardtanh(-20, 20), False, True, True, False),
        (lambda x: x.clamp(-300, 20), False, True, True, False),
        (nn.Threshold(-13, -13), False, True, True, False),
        (nn.Softshrink(12.5), False, False, True, False),
    ],
)
def test_properties(function, identity: bool, idempotent: bool, zero: bool, non_negative: bool):
    found = known(function)
    assert found is not None
    assert (found.is_identity, found.is_idempotent) == (identity, idempotent)
    assert (found.keeps_zero, found.is_non_negative) == (zero, non_negative)


class Drops(nn.Module):
    """Whether it trains arrives as a node of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.dropout(self.a(x), 0.5, training=self.training))


def test_a_dropout_that_is_told_whether_the_model_trains_passes_its_input_on():
    start = capture(Drops().eval(), torch.randn(2, 3))
    drop = next(n for n in start.nodes if "dropout" in n.name)
    found = pointwise(start, drop)
    assert found is not None
    assert found.is_identity


@pytest.mark.parametrize("function", [lambda x: x.softmax(-1), lambda x: x * 2, nn.LayerNorm(4), nn.PReLU()])
def test_what_is_no_known_function_of_single_entries_is_none(function):
    assert known(function) is None


@pytest.mark.parametrize("function", [math.sqrt, math.exp, math.sin])
def test_a_function_of_numbers_is_none_of_tensors(function):
    graph = fx.Graph()
    x = graph.placeholder("x")
    number = graph.call_function(function, (graph.call_method("size", (x, 0)),))
    graph.output(graph.call_function(torch.div, (x, number)))
    start = Program(fx.GraphModule(nn.Module(), graph).eval(), (torch.randn(2, 3),))
    assert pointwise(start, start.nodes[2]) is None


def test_readers_and_calls_are_counted():
    start: Program = program("SharedConv")
    assert calls_of(start)["conv"] == 2
    nodes = {n.name: n for n in start.nodes}
    assert only_reader(nodes["stem"]) is nodes["conv"]
    last = next(n for n in start.nodes if n.op == "output").all_input_nodes[0]
    assert only_reader(last) is None
    two = program("TwoHeads")
    relu = next(n for n in two.nodes if len(n.users) == 2)
    assert only_reader(relu) is None
