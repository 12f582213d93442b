"""Insert a channel gate at the input of every channel-mixing consumer (DNAL, Eq. 2; methods, section 1).

    consumer(x)  ->  consumer(x * g[index])        g = gate_vector()

One gate a unit, however many layers produce or consume it. The gates are off (1) when inserted, so the
outputs stay as they are.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

from typing_extensions import override

from fxsurgery.analysis.gating import GATES, gate_plan, insert_gates
from fxsurgery.edit import Editor
from fxsurgery.gates import GateVector
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, Rewrite, Trains


@dataclass(frozen=True)
class InsertGates(Rewrite):
    """One gate for each unit that can be removed exactly."""

    name: ClassVar[str] = "insert-gates"
    trains: ClassVar[Trains] = Trains.ALIKE

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        if len(gate_plan(program).units):
            yield cls()

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program = edit.program
        if any(isinstance(module, GateVector) for _, module in program.calls(GateVector)):
            edit.refuse(f"{GATES}.vector", "the program has gates already")
            return Effect.EXACT
        plan = gate_plan(program)
        if not len(plan.units):
            edit.refuse("output", "no channel can be removed: each is frozen, or consumed where no gate fits")
            return Effect.EXACT
        parameter = next(program.graph_module.parameters())
        insert_gates(edit, plan, GateVector(len(plan.units)).to(parameter.device, parameter.dtype))
        return Effect.EXACT
