"""Every case that `test_random_programs` ever found, in the words in which it was printed, cut down."""

import pytest

from conformance.graphs import Act, Attention, Conv, Graph, Head, Norm, Transposed
from conformance.promises import check

CASES = {
    "capture: a bias whose gradient is nothing but rounding, and torch's attention": (
        Graph((3, 12), (Conv(0, 6), Norm(1), Act(2), Attention(3, kind="module")), (Head((4,)),)),
        [],
    ),
    "fold-bn: a grouped transposed conv, whose weight is (in, out / groups, ...)": (
        Graph((3, 12), (Conv(0, 4), Transposed(1, 4, groups=2), Norm(2)), (Head((3,)),)),
        ["fold-bn"],
    ),
}
OPEN = {
    "capture: a bias whose gradient is nothing but rounding, and torch's attention": "compared relative to itself",
    "fold-bn: a grouped transposed conv, whose weight is (in, out / groups, ...)": "torch's fusion has no groups",
}
"""What is broken still, and why."""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.xfail(reason=OPEN[n], strict=True)] if n in OPEN else []) for n in CASES],
)
def test_what_was_broken_once_holds(name: str):
    graph, passes = CASES[name]
    check(graph.program(), passes)
