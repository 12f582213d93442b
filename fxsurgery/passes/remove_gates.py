"""Remove all channel gates from the graph.

Exact if the gates are off, or hard and all open; otherwise the outputs lose the effect of the gates.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

from typing_extensions import override

from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.nn.gates import GateApply, GateVector
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite, Trains


@checked_construction
@dataclass(frozen=True)
class RemoveGates(Rewrite):
    """Remove every `GateApply` and the `GateVector` that feeds them."""

    name: ClassVar[str] = "remove-gates"
    trains: ClassVar[Trains] = Trains.ALIKE

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        if any(True for _ in program.calls(GateVector)):
            yield cls()

    @override
    def rewrite(self, edit: Editor) -> Effect:
        open_ = True
        if not any(True for _ in edit.program.calls(GateVector)):
            edit.refuse("output", "there are no gates")
        for node, _ in edit.program.calls(GateApply):
            edit.bypass(node)
        for node, vector in edit.program.calls(GateVector):
            open_ &= vector.mode == "off" or (vector.mode == "hard" and bool((vector.logits > 0).all()))
            edit.erase(node)
        return Effect.EXACT if open_ else Effect.LOSSY
