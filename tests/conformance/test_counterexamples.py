"""Every case that `random_chains` ever found, in the words in which it was printed, cut down."""

from collections.abc import Iterable

import pytest

from conformance.graphs import Graph
from conformance.promises import check
from conformance.steps import Act, Again, Attention, Conv, Head, Join, Norm, Transposed
from fxsurgery.passes import ALL
from nonempty import nonempty

BIAS = "capture: a bias whose gradient is nothing but rounding, and torch's attention"
MORE = "capture: the same, where it is larger beside the others"
FOLD = "fold-bn: a grouped transposed conv, whose weight is (in, out / groups, ...)"
IDLE = "fold-bn: a batch norm without running statistics is offered, and refused"
LIST = "remove-layer: an instance norm without parameters takes other channels, with a warning"

CASES = {
    BIAS: (Graph((3, 12), (Conv(0, 6), Norm(1), Act(2), Attention(3, kind="module")), (Head((4,)),)), []),
    MORE: (
        Graph(
            (3, 8, 8),
            (Conv(0, 6, bias=False), Act(1), Conv(2, 6, stride=2), Norm(3), Attention(4, kind="module")),
            (Head((5,)),),
            seed=1,
        ),
        [],
    ),
    FOLD: (Graph((3, 12), (Conv(0, 4), Transposed(1, 4, groups=2), Norm(2)), (Head((3,)),)), ["fold-bn"]),
    "remove-layer: what stays meets itself in a difference": (
        Graph((3, 12), (Conv(0, 4), Norm(1, "layer"), Conv(2, 4), Act(3), Join(4, 2, "-")), (Head((1, 5)),)),
        ["remove-layer(layer='conv2')"],
    ),
    LIST: (
        Graph((3, 8, 8), (Conv(0, 6), Norm(1, "instance", affine=False, running=False)), (Head((1, 2)),)),
        ["remove-layer(layer='conv0')"],
    ),
    "low-rank: a layer that is called on what it gave itself": (
        Graph((3, 8, 8), (Conv(0, 3, bias=False), Again(1, 1)), (Head((2,)), Head((2,), how="map"))),
        ["low-rank(layer='conv0',rank=None,energy=None,params=0.5,scheme='auto')"],
    ),
}
LISTED = {IDLE: Graph((3, 8, 8), (Conv(0, 4), Norm(1, running=False)), (Head((2,)),))}
"""What was offered as a candidate, and could not be done."""
OPEN = dict[str, str]()
"""What is broken still, and why."""


def _cases(names: Iterable[str]) -> pytest.MarkDecorator:
    open_ = {name: [pytest.mark.xfail(reason=why, strict=True)] for name, why in OPEN.items()}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=open_.get(name, [])) for name in names])


@_cases(CASES)
def test_what_was_broken_once_holds(name: str):
    graph, passes = CASES[name]
    check(graph.program(), passes)


@_cases(LISTED)
def test_what_is_offered_can_be_done(name: str):
    program = LISTED[name].program()
    for move in nonempty(move for pass_type in ALL.values() for move in pass_type.candidates(program)):
        assert move(program).changes, move.name
