"""What of a graph computes something that nothing reads, and need not be written."""

from torch import fx

from fxsurgery.ops import registry
from fxsurgery.program import Program


def dead(program: Program) -> set[fx.Node]:
    """What computes something that nothing reads."""
    found = set[fx.Node]()
    for node in reversed(program.nodes):
        if node.op in {"call_function", "call_method"} and set(node.users) <= found and not _acts(node):
            found.add(node)
    return found


def _acts(node: fx.Node) -> bool:
    """Whether a node does more than give a value: it writes, checks, or draws random numbers."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "_")
    operator = registry.of(node)
    drawn = operator is not None and operator.draws is not None
    return drawn or registry.overwritten(node) is not None or name.startswith("_") or "out" in node.kwargs
