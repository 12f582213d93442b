"""Random graphs, random chains of passes: every promise holds, or hypothesis prints the smallest case that breaks it.

A case that fails is printed as a call of `check`: it goes into `test_counterexamples.py`, and stays there.
"""

import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from conformance.graphs import Graph
from conformance.promises import check_endures, check_pass
from conformance.strategies import draw_move, draw_variant, graphs
from fxsurgery.errors import SpecError, StructureError

LENGTH = 3
"""Passes in a chain, at most."""


def run(graph: Graph, data: st.DataObject) -> None:
    specs = list[str]()
    try:
        after = start = graph.program()
        for _ in range(data.draw(st.integers(1, LENGTH))):
            if (move := draw_move(data, after)) is None:
                break
            variant = draw_variant(data, move)
            specs.append(str(variant))
            try:
                result = check_pass(after, variant)
            except (SpecError, StructureError) as error:
                nothing_left = "no channel would be left" in str(error)
                if variant == move or not (isinstance(error, SpecError) or nothing_left):
                    raise
                specs.pop()
                continue
            done = result.changes or variant != move
            assert done, f"{move} is a candidate, and cannot be done: {result.refusals}"
            after = result.program
        check_endures(start, after)
    except Exception as error:
        error.add_note(f"check({graph!r}.program(), {specs!r})")
        raise


chains = given(graphs(), st.data())
settled = settings(
    deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


@settings(settled, max_examples=50, derandomize=True)
@chains
def test_random_chains_keep_every_promise(graph: Graph, data: st.DataObject):
    run(graph, data)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@seed(1)
@settings(settled, max_examples=1000, database=None)
@chains
def test_a_thousand_random_chains_keep_every_promise(graph: Graph, data: st.DataObject):
    run(graph, data)
