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

from fxsurgery.analysis.cost import cost, cost_after
from fxsurgery.analysis.structure import Mask, structure
from fxsurgery.argument_names import keyword, named
from fxsurgery.budget import Budget
from fxsurgery.errors import BudgetError
from fxsurgery.searchers.common.latency_model import LatencyLimit
from fxsurgery.searchers.common.widths import Scores, Space, pruned


@dataclass(frozen=True)
class UnitBlock:
    """Units of one group that go together; `order` is its place in the group, first to go first."""

    choice: int
    order: int
    units: tuple[int, ...]
    score: float


def select_widths(found: Space, scores: Scores, budget: Budget, latency: LatencyLimit | None = None) -> Mask:
    """The ids that stay so that `budget` holds, given a score for each id (higher stays).

    A limit on latency is met by bisection over the ranking: what is measured is the pruned network. Where even the
    smallest one is not within a tighter aim, that one is it.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    found.check(budget, latency)
    facts, scores, pinned = structure(found.program), scores.copy(), set[int]()
    while True:
        blocks = sorted(_blocks(found, scores), key=lambda b: (b.score, b.choice, b.order))
        keep = _cut(found, blocks, budget, latency)
        emptied = {int(ids[np.argmax(scores[ids])]) for ids in facts.vectors() if not keep[ids].any()}
        if not emptied:
            return keep
        if emptied <= pinned:
            raise BudgetError(
                f"{named('budget')} cannot be reached without cutting a branch off from the output; raise its "
                f"limit, or lower {keyword('settings', 'align')}"
            )
        pinned |= emptied
        scores[list(emptied)] = math.inf


def _cut(found: Space, blocks: list[UnitBlock], budget: Budget, latency: LatencyLimit | None) -> Mask:
    """Remove from the front until the budget holds, then put back what still fits, best first."""
    original, facts = cost(found.program), structure(found.program)

    def mask(gone: list[UnitBlock]) -> Mask:
        return facts.mask(np.asarray([u for b in gone for u in b.units], np.int64))

    def fits(gone: list[UnitBlock]) -> bool:
        return budget.holds(cost_after(found.program, mask(gone)), original)

    def is_fast(gone: list[UnitBlock]) -> bool:
        keep = mask(gone)
        if latency is None or facts.empty_dims(keep):
            return True
        return latency.holds(pruned(found.program, keep))

    count = _fewest(0, len(blocks), lambda n: fits(blocks[:n]))
    if latency is not None:
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


def _blocks(found: Space, scores: Scores) -> Iterator[UnitBlock]:
    """Each group's blocks in the order of going, with scores that never fall along it."""
    for number, choice in enumerate(found.choices):
        ranked = choice.group.units[np.argsort(-scores[choice.group.units], kind="stable")]
        floor = -math.inf
        for order, (more, fewer) in enumerate(zip(choice.counts, choice.counts[1:], strict=False)):
            units = ranked[fewer:more]
            floor = max(floor, float(scores[units].mean()))
            yield UnitBlock(number, order, tuple(units.tolist()), floor)


def evenly(found: Space, scores: Scores | None = None) -> Scores:
    """Scores that take every width down in step, each group's units in the order of `scores`, or of their place."""
    even = np.zeros(structure(found.program).size)
    for choice in found.choices:
        units = choice.group.units
        ranked = units if scores is None else units[np.argsort(-scores[units], kind="stable")]
        even[ranked] = 1.0 - np.arange(len(units)) / len(units)
    return even
