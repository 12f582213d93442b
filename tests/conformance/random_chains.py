"""Random graphs, random chains of passes: every promise holds, or hypothesis prints the smallest case that breaks it.

    PYTHONPATH=tests PYTHONHASHSEED=0 OMP_NUM_THREADS=1 python -m conformance.random_chains --seed 2 --chains 1000

What hypothesis draws from a seed depends on the modules that the process has loaded: it takes constants from them. So
that a seed is the same chains everywhere, they are run in a process of their own.
"""

import argparse
import sys

import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from conformance.graphs import Graph
from conformance.promises import check_endures, check_pass
from conformance.strategies import draw_move, draw_variant, graphs
from fxsurgery.errors import SpecError, StructureError
from nonempty import nonempty

LENGTH = 3
"""Passes in a chain, at most."""


def main() -> None:
    """Run chains; what is broken is raised, with the case as a call of `check`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--chains", type=int, required=True)
    asked = parser.parse_args()
    settled = settings(
        deadline=None, print_blob=True, max_examples=asked.chains, database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )  # fmt: skip
    done = list[int]()

    def count(graph: Graph, data: st.DataObject) -> None:
        done.append(run(graph, data))

    seed(asked.seed)(settled(given(graphs(), st.data())(count)))()
    sys.stdout.write(f"{len(done)} graphs, {sum(done)} passes\n")


def run(graph: Graph, data: st.DataObject) -> int:
    """Draw a chain of passes for a graph, and check it: how many passes it has."""
    specs = list[str]()
    torch.manual_seed(0)
    try:
        after = start = graph.program()
        for _ in nonempty(range(data.draw(st.integers(1, LENGTH)))):
            if (move := draw_move(data, after)) is None:
                break
            variant = draw_variant(data, move)
            specs.append(str(variant))
            try:
                result = check_pass(after, variant)
            except (SpecError, StructureError) as error:
                nothing_left = "no channel would remain" in str(error)
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
    return len(specs)


if __name__ == "__main__":
    main()
