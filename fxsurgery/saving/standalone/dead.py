"""What of a graph computes something that nothing reads, and need not be written."""

from torch import fx

from fxsurgery.program import Program
from fxsurgery.saving.standalone.calls import IN_PLACE


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
    drawn = any(word in name for word in ("rand", "drop", "bernoulli", "normal", "uniform", "multinomial"))
    writes = name.endswith("_") or name == "setitem" or name in IN_PLACE or bool(node.kwargs.get("inplace"))
    return drawn or writes or name.startswith("_") or "out" in node.kwargs
