"""The widths that a program can take: multiples of `align` for each channel group.

x86 kernels lose their fast path where a width is no multiple of 4, and 8 suits every target. Which units go is chosen
in `fxsurgery.searchers.common.width_selection`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxsurgery.analysis.cost import cost, cost_after
from fxsurgery.analysis.elastic_widths import aligned_step, elastic_groups, residual_streams
from fxsurgery.analysis.structure import ChannelGroup, Mask, structure
from fxsurgery.argument_names import assigned, command, keyword
from fxsurgery.budget import Budget, Cost
from fxsurgery.errors import BudgetError, StructureError
from fxsurgery.passes import PruneChannels
from fxsurgery.program import Program
from fxsurgery.rewriting.removable import unremovable, unremovable_notes
from fxsurgery.searchers.common.latency_model import LatencyLimit

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Choice:
    """A group whose width can change, and the numbers of units that it may keep, largest first."""

    group: ChannelGroup
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Space:
    """The widths that a program can take."""

    program: Program
    choices: tuple[Choice, ...]
    align: int
    exact: bool
    """Whether only units are in it that a gate can stand for."""
    unaligned: tuple[str, ...]
    """Groups whose width cannot be aligned, since layers tie their channels unevenly."""

    @property
    def units(self) -> NDArray[np.int64]:
        """Every unit that may go."""
        return np.concatenate([c.group.units for c in self.choices])

    def smallest(self) -> Cost:
        """The cost with every width at its least."""
        return cost_after(self.program, self._least())

    def smallest_program(self) -> Program:
        """The program with every width at its least."""
        return pruned(self.program, self._least())

    def _least(self) -> Mask:
        """What stays at the least widths, one unit at least of each tensor."""
        facts, pinned = structure(self.program), set[int]()
        while True:
            removed = np.concatenate([_beyond_least(choice, pinned) for choice in self.choices])
            keep = facts.mask(removed)
            if not (emptied := facts.empty_dims(keep)):
                return keep
            pinned |= set(emptied)

    def check(self, budget: Budget, latency: LatencyLimit | None = None) -> None:
        """Refuse what cannot be reached.

        Raises:
            BudgetError: a limit lies below the least that this space can reach; it says how much that is.
        """
        original, smallest = cost(self.program), self.smallest()
        for name, limit in budget.limits(original):
            whole, least = getattr(original, name), getattr(smallest, name)
            if least > limit:
                raise BudgetError(
                    f"{limit:,.0f} {name} ({limit / whole:.3f} of the original) cannot be reached: the least is "
                    f"{least:,} ({least / whole:.3f}), with every width at its smallest multiple of {self.align}; "
                    f"{self._further(name, limit)}{command('inspect')} shows what holds the "
                    f"rest{_left_out(name, original)}. Raise the limit, or lower {keyword('settings', 'align')}"
                )
        if budget.latency_ms is None:
            return
        if latency is None:
            raise BudgetError(
                f"a budget of latency_ms needs a device to measure on; pass {assigned('target', 'local')}"
            )
        least_ms = latency.measure(self.smallest_program()).value
        if least_ms > latency.limit_ms:
            raise BudgetError(
                f"a latency of {latency.limit_ms:.4g} ms cannot be reached: the least is {least_ms:.4g} ms, with every "
                f"width at its smallest multiple of {self.align}; as it is, the network takes "
                f"{latency.measure(self.program).value:.4g} ms. Raise latency_ms, or lower "
                f"{keyword('settings', 'align')}"
            )

    def _further(self, name: str, limit: float) -> str:
        """What to tell where another method reaches the limit."""
        if not self.exact:
            return ""
        least = getattr(space(self.program, align=self.align, exact=False).smallest(), name)
        return f"{assigned('method', 'prune')}, which needs no gates, reaches {least:,}; " if least <= limit else ""


def _left_out(name: str, original: Cost) -> str:
    """What to tell of operations that the limit `name` says nothing of."""
    unknown = original.unknown_macs if name == "macs" else ()
    return f". The MACs of {', '.join(unknown)} are unknown and left out" if unknown else ""


def space(program: Program, *, align: int = 8, inner_only: bool = False, exact: bool = True) -> Space:
    """The widths that `program` can take.

    Args:
        program: the captured model.
        align: widths are multiples of this; a group too narrow for it stays as it is.
        inner_only: leave residual streams alone: what flows through sums.
        exact: leave alone what no gate can stand for, such as the hidden width of a transformer: its layer norms
            compute something else on the channels that stay.

    Raises:
        StructureError: no width can change; it says why.
    """
    if align < 1:
        raise StructureError(f"align={align}: it must be at least 1")
    facts = structure(program)
    streams = residual_streams(program) if inner_only else frozenset[int]()
    choices, unaligned = list[Choice](), list[str]()
    for group in elastic_groups(program) if exact else facts.groups:
        if group.name in unremovable(program):
            continue
        if not streams.isdisjoint(group.units.tolist()):
            continue
        step = aligned_step(facts, group, align)
        if step is None:
            unaligned.append(group.name)
        counts = _counts(len(group.units), step or 1)
        if len(counts) > 1:
            choices.append(Choice(group, counts))
    if not choices:
        raise StructureError(_why_nothing(program, align, exact=exact))
    return Space(program, tuple(choices), align, exact, tuple(unaligned))


def _beyond_least(choice: Choice, pinned: set[int]) -> NDArray[np.int64]:
    """The units of a group that its least width with the `pinned` ones leaves out."""
    units = choice.group.units
    first = np.isin(units, sorted(pinned))
    count = min(count for count in choice.counts if count >= first.sum())
    return units[np.argsort(~first, kind="stable")][count:]


def _counts(size: int, step: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys([size, *range(size - size % step, 0, -step)]))


def _why_nothing(program: Program, align: int, *, exact: bool) -> str:
    facts, failures = structure(program), unremovable(program)
    free = [g for g in (elastic_groups(program) if exact else facts.groups) if g.name not in failures]
    if len(facts.groups) > len(failures) and not free:
        names = ", ".join(g.name for g in facts.groups[:5])
        return (
            f"no gate can stand for the channels of {names}: a norm or softmax runs over them, a recurrent layer "
            "feeds them back to itself, or something else than a convolution, linear or recurrent layer reads them. "
            f"use {assigned('method', 'prune')}, which can remove them"
        )
    if free:
        narrow = ", ".join(f"{g.name} ({len(g.units)})" for g in free[:5])
        return f"no channel can be removed in multiples of {align}: {narrow}. Pass a smaller align"
    if failures:
        return f"no channel can be removed: {'; '.join(unremovable_notes(program))}. Take sizes in forward from x.shape"
    tally = dict[str, int]()
    for freeze in facts.freezes:
        tally[f"{freeze.op} at {freeze.node}"] = tally.get(f"{freeze.op} at {freeze.node}", 0) + freeze.count
    worst = sorted(tally, key=lambda k: -tally[k])[:3]
    if not worst:
        what = "has no parameters" if not cost(program).params else "has no layer of PyTorch's with channels"
        return f"no channel can be removed: the model {what}; pass one with convolutions or linear layers of torch.nn"
    return (
        "no channel can be removed: "
        + "; ".join(f"{tally[k]} are held by {k}" for k in worst)
        + ". Rewrite these in forward, or pass another model"
    )


def pruning(program: Program, keep: Mask) -> PruneChannels:
    """The pass that takes `program` to the ids of `keep`."""
    drop = [
        (group.name, tuple(np.flatnonzero(~keep[group.units]).tolist()))
        for group in structure(program).groups
        if not keep[group.units].all()
    ]
    return PruneChannels(tuple(drop))


def pruned(program: Program, keep: Mask) -> Program:
    """The program with the ids of `keep` alone.

    Raises:
        StructureError: the model would not run without the others.
    """
    result = pruning(program, keep)(program)
    if not result.changes and not keep.all():
        raise StructureError(
            f"the widths chosen cannot be cut: {result.refusals[0].reason}; try another "
            f"{keyword('budget')} or {keyword('settings', 'align')}"
        )
    return result.program


def alignment_note(found: Space) -> tuple[str, ...]:
    """What to tell of widths that cannot be aligned."""
    if not found.unaligned:
        return ()
    shown = ", ".join(found.unaligned[:3])
    return (f"widths of {len(found.unaligned)} groups cannot be kept multiples of {found.align}: {shown}",)
