"""Names: the node that an option names, and what a new module is called after."""

import re
from collections.abc import Callable, Iterable

from torch import fx

from fxsurgery.errors import SpecError
from fxsurgery.program import Program


def node_named(program: Program, name: str, known: Callable[[], Iterable[str]], what: str) -> fx.Node:
    """The node of that name.

    Args:
        program: where it is.
        name: as an option of a pass has it.
        known: the names that would do, to be told.
        what: what these are, in the plural.

    Raises:
        SpecError: there is none; where a module has that path, the message says which nodes call it.
    """
    found = next((n for n in program.nodes if n.name == name and n.op != "output"), None)
    if found is not None:
        return found
    calling = [f"%{n}" for n in program.nodes if n.op == "call_module" and n.target == name]
    hint = f" (the module {name} is called by {', '.join(calling)})" if calling else ""
    raise SpecError(f"no node is named {name!r}{hint}; choose one of the {what}: {', '.join(known()) or 'none'}")


def stem_of(name: str) -> str:
    """What a new module is called after, where it stands behind one of this name: without what passes have added.

    So names stay short however many cells and layers are put in one after the other.
    """
    return _ADDED.sub("", name) or name


_ADDED = re.compile(r"(_(cell_(conv|pool|norm|act)|deeper(_norm|_act)?)(_\d+)?)+$")
