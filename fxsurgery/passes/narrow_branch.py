"""Remove channels from one branch of a residual sum, which keeps its width (after DNAL, section on residual networks).

    y = x + f(x)    ->    y = x + scatter(f'(x))        scatter puts zeros where channels are missing

f' lacks these rows of its last layer, and everything private to them: norms, scales, slopes. The stream keeps every
channel, with the values of the shortcut and the other branches. So the result equals exactly the program whose gates
at the input of the sum (`insert-gates(residual='independent')`) are 0 for these channels, whatever the last function
of the branch gives for a zero, since the gate comes after it. This is proven on the example inputs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from typing_extensions import override

from fxsurgery.analysis.gating import gates_like
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.match import Refusal
from fxsurgery.nn.gates import GateApply
from fxsurgery.program import Program
from fxsurgery.proof import itself
from fxsurgery.rewriting.branches import Branch, branches, scatter
from fxsurgery.rewriting.resize import resize
from fxsurgery.surgery import Effect, Rewrite


@checked_construction
@dataclass(frozen=True)
class NarrowBranch(Rewrite):
    """Remove channels of branches, named by the node that gives them."""

    name: ClassVar[str] = "narrow-branch"
    follows_structure: ClassVar[bool] = True
    drop: tuple[tuple[str, tuple[int, ...]], ...]
    """For each branch, by name, the current indices of the channels to remove."""

    @classmethod
    @override
    def candidates(cls, program: Program) -> Iterator[Self]:
        """Yield the removal of the last quarter of each branch, one branch at a time."""
        for branch in branches(program).found:
            units = branch.units
            if cut := len(units) // 4:
                yield cls(((branch.operand.name, branch.channels(units[-cut:])),))

    @override
    def rewrite(self, edit: Editor) -> Effect:
        chosen = self._chosen(edit)
        if edit.refusals:
            return Effect.EXACT
        facts = branches(edit.program).facts
        resize(edit, facts, facts.mask(np.concatenate([branch.ids[lost] for branch, lost in chosen])))
        for branch, lost in chosen:
            scatter(edit, branch.operand, [c for c in range(len(branch.ids)) if c not in lost])
        edit.prove_equal_to(itself(_closed(edit.program, chosen)))
        return Effect.LOSSY

    def _chosen(self, edit: Editor) -> list[tuple[Branch, list[int]]]:
        """Return the branches with the channels that each loses; refuse those that cannot lose them."""
        known, chosen = branches(edit.program), list[tuple[Branch, list[int]]]()
        for name, positions in self.drop:
            branch = known.branch(name)
            if branch is None and name not in known.refused:
                names = ", ".join([*(b.operand.name for b in known.found), *known.refused])
                raise SpecError(f"no sum adds a branch that is named {name!r}; there are: {names or 'none'}")
            if branch is None:
                edit.refuse(name, known.refused[name])
            elif lost := _checked(branch, positions):
                chosen.append((branch, lost))
                if refusal := _obstacle(branch, lost):
                    edit.refuse(name, refusal)
        if not chosen and not edit.refusals:
            edit.refuse("output", "no channel is named")
        return chosen


def _checked(branch: Branch, positions: tuple[int, ...]) -> list[int]:
    width = len(branch.ids)
    if beyond := [p for p in positions if not 0 <= p < width]:
        raise SpecError(
            f"{branch.operand.name} has {width} channels; there is no channel {beyond[0]}; choose among them"
        )
    return sorted(set(positions))


def _obstacle(branch: Branch, lost: list[int]) -> Refusal | None:
    units = branch.ids[lost]
    if (units == 0).any():
        return Refusal(
            branch.operand.name, f"channel {lost[int(np.argmin(units))]} does not belong to this branch alone"
        )
    if apart := sorted(set(branch.channels(units)) - set(lost)):
        return Refusal(branch.operand.name, f"channel {apart[0]} must be removed together with those that are named")
    if len(lost) == len(branch.ids):
        return Refusal(branch.operand.name, "no channel would be left; remove the block instead")
    return None


def _closed(program: Program, chosen: list[tuple[Branch, list[int]]]) -> Program:
    """Return the program with gates at the input of the sums: 0 for the channels to remove."""
    edit = Editor(program)
    for position, (branch, lost) in enumerate(chosen):
        at, width = branch.operand, len(branch.ids)
        gates = gates_like(program, width)
        gates.mode = "hard"
        with torch.no_grad():
            gates.logits.fill_(1.0)[lost] = -1.0
        path = f"fxsurgery_closed.{position}"
        vector = edit.insert_call(f"{path}.gates", gates, (), before=at.reader)
        apply = GateApply(torch.arange(1, width + 1, device=gates.logits.device), at.dim)
        node = edit.insert_call(f"{path}.closed", apply, (at.source, vector), before=at.reader)
        edit.rewire(at.reader, at.source, node)
    return edit.finish("closed")
