"""From a score for each unit to widths within a budget.

Units are ranked by score inside their channel group, and are removed in *blocks* that keep every width a multiple of
`align` (x86 kernels lose their fast path where a width is no multiple of 4, and 8 suits every target). Blocks of all
groups are then ranked by their mean score and removed, lowest first, until the budget holds; last, what still fits is
put back. So the result is at or below the budget by less than the smallest block that was left out.

A group whose width the user fixed has no blocks: its lowest units are removed first, whatever the budget.
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
from fxsurgery.ops.union_find import Ids
from fxsurgery.searchers.common.latency_model import LatencyLimit
from fxsurgery.searchers.common.reachable import require_reachable
from fxsurgery.searchers.common.widths import Choice, Scores, Space, pruned


@dataclass(frozen=True)
class UnitBlock:
    """Units of one group that are removed together; `order` counts the blocks of the group, the first to go being 0."""

    choice: int
    order: int
    units: tuple[int, ...]
    score: float


def select_widths(found: Space, scores: Scores, budget: Budget | None, latency: LatencyLimit | None = None) -> Mask:
    """Return the ids that stay so that `budget` holds, given a score for each id (higher stays).

    A limit on latency is met by bisection over the ranking: what is measured is the pruned network. If even the
    smallest one misses a tighter aim, that one is returned.

    Args:
        found: the widths to choose among.
        scores: (ids,) the importance of each unit.
        budget: the limits; `None` to change only the widths that the user fixed.
        latency: the limit on latency, with the way to measure it.

    Raises:
        BudgetError: the budget cannot be reached.
    """
    if budget is not None:
        require_reachable(found, budget, latency)
    facts, scores, pinned = structure(found.program), scores.copy(), set[int]()
    while True:
        blocks = sorted(_blocks(found, scores), key=lambda b: (b.score, b.choice, b.order))
        fixed = np.concatenate([_ranked(choice, scores)[choice.counts[0] :] for choice in found.choices])
        keep = facts.mask(fixed) if budget is None else _cut(found, fixed, blocks, budget, latency)
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


def _cut(found: Space, fixed: Ids, blocks: list[UnitBlock], budget: Budget, latency: LatencyLimit | None) -> Mask:
    """Remove blocks from the front until the budget holds, then put back what still fits, best first."""
    original, facts = cost(found.program), structure(found.program)

    def mask(gone: list[UnitBlock]) -> Mask:
        units = np.asarray([u for b in gone for u in b.units], np.int64)
        return facts.mask(np.concatenate([fixed, units]))

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


def _fewest(low: int, high: int, is_enough: Callable[[int], bool]) -> int:
    """Return the least number from `low` to `high` that is enough; `high` is assumed to be."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low


def _ranked(choice: Choice, scores: Scores) -> Ids:
    """Return the units of a group, the highest score first."""
    units = choice.group.units
    return units[np.argsort(-scores[units], kind="stable")]


def _blocks(found: Space, scores: Scores) -> Iterator[UnitBlock]:
    """Yield each group's blocks in the order of their removal, with scores that never fall along it."""
    for number, choice in enumerate(found.choices):
        ranked, floor = _ranked(choice, scores), -math.inf
        for order, (more, fewer) in enumerate(zip(choice.counts, choice.counts[1:], strict=False)):
            units = ranked[fewer:more]
            floor = max(floor, float(scores[units].mean()))
            yield UnitBlock(number, order, tuple(units.tolist()), floor)


def evenly(found: Space, scores: Scores | None = None) -> Scores:
    """Return scores that reduce every width in step.

    Args:
        found: the widths to choose among.
        scores: (ids,) the order of each group's units; that of their channels by default.
    """
    even = np.zeros(structure(found.program).size)
    for choice in found.choices:
        ranked = choice.group.units if scores is None else _ranked(choice, scores)
        even[ranked] = 1.0 - np.arange(len(ranked)) / len(ranked)
    return even
