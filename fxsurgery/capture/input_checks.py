"""Checks of a graph's inputs, before anything is computed."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import fx

from fxsurgery.capture.size_tape import ASSERT


@contextmanager
def before_computation(graph: fx.Graph) -> Iterator[None]:
    """Insert nodes after the inputs of `graph` and the checks that it has."""
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    checks = [node for node in graph.nodes if node.meta.get("input_check")]
    with graph.inserting_before((checks or inputs)[-1].next):
        yield


def check(graph: fx.Graph, condition: fx.Node, message: str) -> None:
    """Insert a check that raises `message` unless `condition` holds."""
    graph.call_function(ASSERT, (condition, message)).meta["input_check"] = True
