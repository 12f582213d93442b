"""Detection of nodes whose result is never read."""

from torch import fx

from fxsurgery.ops import registry
from fxsurgery.program import Program


def dead_nodes(program: Program) -> set[fx.Node]:
    """Return the nodes whose result is never read and that have no side effect."""
    found = set[fx.Node]()
    for node in reversed(program.nodes):
        if node.op in {"call_function", "call_method"} and set(node.users) <= found and not _has_side_effect(node):
            found.add(node)
    return found


def _has_side_effect(node: fx.Node) -> bool:
    """Return True if a node has a side effect: it writes, asserts, or draws random numbers."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
    operator = registry.of(node)
    is_random = operator is not None and operator.draws is not None
    return is_random or registry.overwritten(node) is not None or name.startswith("_") or "out" in node.kwargs
