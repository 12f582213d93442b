"""Names: the node that an option names, and the base name of a new module."""

import re
from collections.abc import Callable, Iterable

from torch import fx

from fxsurgery.errors import SpecError
from fxsurgery.program import Program


def node_named(program: Program, name: str, known: Callable[[], Iterable[str]], what: str) -> fx.Node:
    """Return the node of that name.

    Args:
        program: the program with the node.
        name: the name, from an option of a pass.
        known: valid names, for the message.
        what: the kind of the valid names, in the plural.

    Raises:
        SpecError: there is no such node; if a module has that path, the message names the nodes that call it.
    """
    found = next((n for n in program.nodes if n.name == name and n.op != "output"), None)
    if found is not None:
        return found
    calling = [f"%{n}" for n in program.nodes if n.op == "call_module" and n.target == name]
    hint = f" (the module {name} is called by {', '.join(calling)})" if calling else ""
    raise SpecError(f"no node is named {name!r}{hint}; choose one of the {what}: {', '.join(known()) or 'none'}")


def stem_of(name: str) -> str:
    """Return the base name for a new module after one of this name, without the suffixes that passes added.

    So names stay short, however many cells and layers are inserted.
    """
    return _ADDED.sub("", name) or name


_ADDED = re.compile(r"(_(cell_(conv|pool|norm|act)|deeper(_norm|_act)?)(_\d+)?)+$")
