"""From a score for each unit to widths within a budget.

Units are ranked by score inside their channel group, and go in *blocks* that keep every width a multiple of
`align` (x86 kernels lose their fast path where a width is no multiple of 4, and 8 suits every target).
Blocks of all groups are then ranked by their mean score and removed, lowest first, until the budget
holds; last, what still fits is put back. So the result is at or below the budget by less than the smallest
block that was left out.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxsurgery.analysis.cost import cost, cost_after
from fxsurgery.analysis.elastic_widths import aligned_step, elastic_groups, residual_streams
from fxsurgery.analysis.gating import gate_plan
from fxsurgery.analysis.structure import ChannelGroup, Mask, Structure, structure
from fxsurgery.budget import Budget, Cost
from fxsurgery.errors import BudgetError, StructureError
from fxsurgery.passes import PruneChannels
from fxsurgery.program import Program

Scores = NDArray[np.float64]
Measure = Callable[[Program], float]
"""The latency of a program in milliseconds, measured where it shall run."""


@dataclass(frozen=True, eq=False)
class Choice:
    """A group whose width can change, and the numbers of units that it may keep, largest first."""

    group: ChannelGroup
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Block:
    """Units of one group that go together; `order` is its place in the group, first to go first."""

    choice: int
    order: int
    units: tuple[int, ...]
    score: float


@dataclass(frozen=True, eq=False)
class Space:
    """The widths that a program can take."""

    program: Program
    choices: tuple[Choice, ...]
    align: int
    unaligned: tuple[str, ...]
    """Groups whose width cannot be aligned, since layers tie their channels unevenly."""

    @property
    def units(self) -> NDArray[np.int64]:
        """Every unit that may go."""
        return np.concatenate([c.group.units for c in self.choices])

    def smallest(self) -> Cost:
        """The cost with every width at its least."""
        return cost_after(self.program, self._least())

    def _least(self) -> Mask:
        removed = [c.group.units[c.counts[-1] :] for c in self.choices]
        return structure(self.program).mask(np.concatenate(removed))

    def check(self, budget: Budget, measure: Measure | None = None) -> None:
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
                    f"{least:,} ({least / whole:.3f}), with every width at its smallest multiple of {self.align}"
                )
        if budget.latency_ms is None:
            return
        if measure is None:
            raise BudgetError("a budget of latency_ms needs a device to measure on: optimize(..., target='local')")
        least_ms = measure(pruning(self.program, self._least())(self.program).program)
        if least_ms > budget.latency_ms:
            raise BudgetError(
                f"a latency of {budget.latency_ms:g} ms cannot be reached: the least is {least_ms:.3g} ms, with every "
                f"width at its smallest multiple of {self.align}"
            )


def space(program: Program, *, align: int = 8, inner_only: bool = False) -> Space:
    """The widths that `program` can take.

    Args:
        program: the captured model.
        align: widths are multiples of this; a group too narrow for it stays as it is.
        inner_only: leave residual streams alone: what flows through sums.

    Raises:
        StructureError: no width can change; it says why.
    """
    if align < 1:
        raise StructureError(f"align={align}: widths are multiples of a number of at least 1")
    facts, gated = structure(program), set(gate_plan(program).units.tolist())
    streams = residual_streams(program) if inner_only else frozenset[int]()
    choices, unaligned = list[Choice](), list[str]()
    for group in elastic_groups(program):
        if not streams.isdisjoint(group.units.tolist()):
            continue
        step = aligned_step(facts, group, align)
        if step is None:
            unaligned.append(group.name)
        counts = _counts(len(group.units), step or 1)
        if len(counts) > 1:
            choices.append(Choice(group, counts))
    if not choices:
        raise StructureError(_why_nothing(facts, gated, align))
    return Space(program, tuple(choices), align, tuple(unaligned))


def _counts(size: int, step: int) -> tuple[int, ...]:
    return tuple(dict.fromkeys([size, *range(size - size % step, 0, -step)]))


def _why_nothing(facts: Structure, gated: set[int], align: int) -> str:
    free = [g for g in facts.groups if set(g.units.tolist()) <= gated and facts.removable(g)]
    if facts.groups and not free:
        names = ", ".join(g.name for g in facts.groups[:5])
        return (
            f"no gate can stand for the channels of {names}: a norm or softmax runs over them, or something else than "
            "a convolution, linear or recurrent layer reads them. The pass prune-channels can still remove them"
        )
    if free:
        narrow = ", ".join(f"{g.name} ({len(g.units)})" for g in free[:5])
        return f"no channel can be removed in multiples of {align}: {narrow}. Pass a smaller align"
    tally = dict[str, int]()
    for freeze in facts.freezes:
        tally[f"{freeze.op} at {freeze.node}"] = tally.get(f"{freeze.op} at {freeze.node}", 0) + freeze.count
    worst = sorted(tally, key=lambda k: -tally[k])[:3]
    return "no channel can be removed: " + "; ".join(f"{tally[k]} are held by {k}" for k in worst)


def project(found: Space, scores: Scores, budget: Budget, measure: Measure | None = None) -> Mask:
    """The ids that stay so that `budget` holds, given a score for each id (higher stays).

    A limit on latency is met by bisection over the ranking: what is measured is the pruned network.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    found.check(budget, measure)
    facts, scores, pinned = structure(found.program), scores.copy(), set[int]()
    while True:
        blocks = sorted(_blocks(found, scores), key=lambda b: (b.score, b.choice, b.order))
        keep = _cut(found, blocks, budget, measure)
        emptied = {int(ids[np.argmax(scores[ids])]) for ids in facts.vectors() if not keep[ids].any()}
        if not emptied:
            return keep
        if emptied <= pinned:
            raise BudgetError("the budget cannot be reached without cutting a branch off from the output")
        pinned |= emptied
        scores[list(emptied)] = math.inf


def _cut(found: Space, blocks: list[Block], budget: Budget, measure: Measure | None) -> Mask:
    """Remove from the front until the budget holds, then put back what still fits, best first."""
    original, facts = cost(found.program), structure(found.program)

    def mask(gone: list[Block]) -> Mask:
        return facts.mask(np.asarray([u for b in gone for u in b.units], np.int64))

    def fits(gone: list[Block]) -> bool:
        return budget.holds(cost_after(found.program, mask(gone)), original)

    def is_fast(gone: list[Block]) -> bool:
        keep = mask(gone)
        if measure is None or budget.latency_ms is None or facts.emptied(keep):
            return True
        return measure(pruning(found.program, keep)(found.program).program) <= budget.latency_ms

    count = _fewest(0, len(blocks), lambda n: fits(blocks[:n]))
    if budget.latency_ms is not None:
        return mask(blocks[: _fewest(count, len(blocks), lambda n: is_fast(blocks[:n]))])
    gone = blocks[:count]
    for block in reversed(gone):
        later = any(b.choice == block.choice and b.order > block.order for b in gone)
        if not later and fits(rest := [b for b in gone if b is not block]):
            gone = rest
    return mask(gone)


def _fewest(low: int, high: int, enough: Callable[[int], bool]) -> int:
    """The least number from `low` to `high` that is enough; `high` is taken to be."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return low


def _blocks(found: Space, scores: Scores) -> Iterator[Block]:
    """Each group's blocks in the order of going, with scores that never fall along it."""
    for number, choice in enumerate(found.choices):
        ranked = choice.group.units[np.argsort(-scores[choice.group.units], kind="stable")]
        floor = -math.inf
        for order, (more, fewer) in enumerate(zip(choice.counts, choice.counts[1:], strict=False)):
            units = ranked[fewer:more]
            floor = max(floor, float(scores[units].mean()))
            yield Block(number, order, tuple(units.tolist()), floor)


def evenly(found: Space) -> Scores:
    """Scores that take every width down in step."""
    scores = np.zeros(structure(found.program).size)
    for choice in found.choices:
        units = choice.group.units
        scores[units] = 1.0 - np.arange(len(units)) / len(units)
    return scores


def pruning(program: Program, keep: Mask) -> PruneChannels:
    """The pass that takes `program` to the ids of `keep`."""
    drop = [
        (group.name, tuple(np.flatnonzero(~keep[group.units]).tolist()))
        for group in structure(program).groups
        if not keep[group.units].all()
    ]
    return PruneChannels(tuple(drop))
