"""Insert a channel gate at the input of every channel-mixing consumer (DNAL, Eq. 2).

    consumer(x)  ->  consumer(x * g[index])        g = gate_vector()

One gate per unit, however many layers produce or consume it. The gates are off (1) when inserted, so the
outputs do not change.

    x + f(x)  ->  x + f(x) * g[index]              residual="independent"

Then the residual stream has no gates of its own; each branch has gates where the sum reads it, after its norm and
activation, so that gate 0 has the effect of `narrow-branch`. The shortcut has none if it is the stream itself: its
channels stay. (The published DNAL code discards those that a branch has closed.)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np
from typing_extensions import override

from fxsurgery.analysis.gating import GATES, GatePlan, gate_plan, gates_like
from fxsurgery.analysis.structure import structure
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.nn.gates import GateVector
from fxsurgery.program import Program
from fxsurgery.rewriting.branches import independent_gates, insert_independent
from fxsurgery.rewriting.gate_insertion import insert_gates
from fxsurgery.surgery import Effect, Rewrite, Trains


@checked_construction
@dataclass(frozen=True)
class InsertGates(Rewrite):
    """Insert one gate for each unit that can be removed exactly."""

    name: ClassVar[str] = "insert-gates"
    trains: ClassVar[Trains] = Trains.ALIKE
    follows_structure: ClassVar[bool] = True
    residual: Literal["tied", "independent"] = "tied"
    """The gates of a residual stream: one per channel, or one per channel of each branch."""
    keep: tuple[str, ...] = ()
    """Names of channel groups that get no gates; with tied gates only."""

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        if any(True for _ in program.calls(GateVector)):
            return
        if len(gate_plan(program).units):
            yield cls()
        if independent_gates(program).branches:
            yield cls("independent")

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program = edit.program
        if any(True for _ in program.calls(GateVector)):
            edit.refuse(f"{GATES}.vector", "the program has gates already")
            return Effect.EXACT
        independent = self.residual == "independent"
        size = independent_gates(program).size if independent else len(self.plan(program).units)
        if not size:
            edit.refuse("output", "no channel can be removed: each is frozen, or consumed where no gate fits")
            return Effect.EXACT
        gates = gates_like(program, size)
        if independent:
            insert_independent(edit, independent_gates(program), gates)
        else:
            insert_gates(edit, self.plan(program), gates)
        return Effect.EXACT

    def plan(self, program: Program) -> GatePlan:
        """Return where the tied gates of `program` are inserted, and for which units.

        Raises:
            SpecError: no channel group has a name of `keep`, or the gates are independent.
        """
        if self.keep and self.residual == "independent":
            raise SpecError("insert-gates: keep= needs residual='tied'; leave one of them out")
        kept = [structure(program).named(name).units for name in self.keep]
        return gate_plan(program).without(np.concatenate(kept)) if kept else gate_plan(program)
