"""The names of values in the generated forward: which are free, and which one a new value takes."""

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import fx

from fxsurgery.saving.standalone.signature import TAKEN

LONGEST_NAME = 24


@dataclass
class Names:
    """The names in use while the statements are written, and who still wants them."""

    last: Mapping[fx.Node, int]
    """For each node, the number of the last statement that reads it."""
    of: dict[fx.Node, str] = field(default_factory=dict)
    age: dict[str, int] = field(default_factory=dict)
    lasting: set[str] = field(default_factory=set)
    """Names that no value may take: arguments that parts are read of, and what stands for a part of the model."""
    trunks: set[str] = field(default_factory=lambda: {"x"})
    """Names that go on through the network."""

    def give(self, node: fx.Node, hint: str, at: int, reads: list[fx.Node]) -> str:
        """A name for `node`: that of a value which ends here, or a new one.

        A layer with weights on a branch names what it gives; any other goes on under the name of its input. What a
        layer makes of an argument is the trunk.
        """
        ending = [r for r in reads if r in self.of and self.last.get(r, -1) <= at and self.of[r] not in self.lasting]
        free = [self.of[r] for r in ending if not self._is_wanted(self.of[r], at, r)]
        kept = min(free, key=lambda n: self.age.get(n, 0), default="")
        if node.op == "call_module" and self.age.get(kept) == -1 and kept not in self.trunks:
            hint, kept = "x", ""
        if kept and kept not in self.trunks and hint.startswith("="):
            kept = ""
        name = kept or self._fresh(hint.removeprefix("="), at)
        self.age.setdefault(name, at)
        self.of[node] = name
        return name

    def _is_wanted(self, name: str, at: int, but: fx.Node) -> bool:
        return any(n is not but and self.of[n] == name and self.last.get(n, -1) > at for n in self.of)

    def _fresh(self, hint: str, at: int) -> str:
        busy = {name for node, name in self.of.items() if self.last.get(node, -1) > at} | self.lasting | TAKEN
        number, name = 1, hint
        while name in busy or keyword.iskeyword(name):
            number += 1
            name = f"{hint}{'_' if hint[-1].isdigit() else ''}{number}"
        self.age[name] = at
        return name


def fitting(name: str) -> str:
    """`name` as a local variable: short, and nothing that the language has."""
    name = re.sub(r"\W", "_", name, flags=re.ASCII).strip("_").lower()
    if len(name) > LONGEST_NAME:
        name = "_".join(name.split("_")[-2:])[-LONGEST_NAME:].strip("_")
    return name if name.isidentifier() and not keyword.iskeyword(name) else "x"
