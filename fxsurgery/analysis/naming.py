"""Names: looking up nodes named in options, and naming new modules."""

import re
from collections.abc import Callable, Iterable

from torch import fx

from fxsurgery.errors import SpecError
from fxsurgery.program import Program


def node_named(program: Program, name: str, known: Callable[[], Iterable[str]], what: str) -> fx.Node:
    """Return the node with the given name.

    Args:
        program: the program.
        name: the name, as given in an option of a pass.
        known: returns the valid names, for the error message.
        what: what the valid names refer to, in the plural.

    Raises:
        SpecError: there is none; if a module has this path, the message names the nodes that call it.
    """
    found = next((n for n in program.nodes if n.name == name and n.op != "output"), None)
    if found is not None:
        return found
    calling = [f"%{n}" for n in program.nodes if n.op == "call_module" and n.target == name]
    hint = f" (the module {name} is called by {', '.join(calling)})" if calling else ""
    raise SpecError(f"no node is named {name!r}{hint}; choose one of the {what}: {', '.join(known()) or 'none'}")


def stem_of(name: str) -> str:
    """Return the base name for a module inserted after one with this name: without suffixes that passes have added.

    This keeps names short when many cells and layers are inserted in a row.
    """
    return _ADDED.sub("", name) or name


_ADDED = re.compile(r"(_(cell_(conv|pool|norm|act)|deeper(_norm|_act)?)(_\d+)?)+$")
