"""Variable names in the generated forward."""

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from fxsurgery.saving.standalone.signature import RESERVED

MAX_NAME_LENGTH = 24


@dataclass
class Names:
    """The names in use while statements are generated."""

    last: Mapping[fx.Node, int]
    """Index of the last statement that reads each node."""
    of: dict[fx.Node, str] = field(default_factory=dict)
    age: dict[str, int] = field(default_factory=dict)
    reserved: set[str] = field(default_factory=set)
    """Names that values may not take: arguments whose parts are read, and aliases of sections."""
    trunks: set[str] = field(default_factory=lambda: {"x"})
    """Names that are passed on along the trunk of the network."""

    def assign(self, node: fx.Node, hint: str, position: int, reads: list[fx.Node]) -> str:
        """Return a name for `node`: that of an input which is not read again, or a new one.

        A layer with weights on a branch starts a new name; any other operation keeps the name of its input. The output
        of a layer applied to an argument starts the trunk.
        """
        unused_inputs = [
            r for r in reads if r in self.of and self.last.get(r, -1) <= position and self.of[r] not in self.reserved
        ]
        free = [self.of[r] for r in unused_inputs if not self._is_read_later(self.of[r], position, r)]
        inherited = min(free, key=lambda n: self.age.get(n, 0), default="")
        if node.op == "call_module" and self.age.get(inherited) == -1 and inherited not in self.trunks:
            hint, inherited = "x", ""
        if inherited and inherited not in self.trunks and hint.startswith("="):
            inherited = ""
        name = inherited or self._fresh(hint.removeprefix("="), position)
        self.age.setdefault(name, position)
        self.of[node] = name
        return name

    def _is_read_later(self, name: str, position: int, but: fx.Node) -> bool:
        return any(n is not but and self.of[n] == name and self.last.get(n, -1) > position for n in self.of)

    def _fresh(self, hint: str, position: int) -> str:
        busy = {name for node, name in self.of.items() if self.last.get(node, -1) > position} | self.reserved | RESERVED
        number, name = 1, hint
        while name in busy or keyword.iskeyword(name):
            number += 1
            name = f"{hint}{'_' if hint[-1].isdigit() else ''}{number}"
        self.age[name] = position
        return name


def variable_name(name: str) -> str:
    """Convert `name` to a short local variable name that is not a keyword."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_").lower()
    if len(name) > MAX_NAME_LENGTH:
        name = "_".join(name.split("_")[-2:])[-MAX_NAME_LENGTH:].strip("_")
    return name if name.isidentifier() and not keyword.iskeyword(name) else "x"
