"""The widths that a program can take: multiples of `align` for each channel group.

x86 kernels lose their fast path where a width is no multiple of 4, and 8 suits every target. Which units are removed is
chosen in `fxsurgery.searchers.common.width_selection`; `width_constraints` describes what a user can fix.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fxsurgery.analysis.cost import cost_after
from fxsurgery.analysis.elastic_widths import aligned_step, elastic_groups, residual_streams
from fxsurgery.analysis.structure import ChannelGroup, Mask, structure
from fxsurgery.argument_names import assigned, keyword, named
from fxsurgery.budget import Cost
from fxsurgery.errors import StructureError
from fxsurgery.passes import PruneChannels
from fxsurgery.program import Program
from fxsurgery.rewriting.removable import unremovable
from fxsurgery.searchers.common.fixed_widths import NO_GATE, why_nothing
from fxsurgery.searchers.common.width_constraints import FREE, Target, WidthConstraints, listed

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Choice:
    """A group whose width can change, and the numbers of units that it may keep, largest first.

    A single number if the user fixed it.
    """

    group: ChannelGroup
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Restriction:
    """A condition of a method on the groups that it can change."""

    admits: Callable[[ChannelGroup], bool]
    reason: str
    """Why it leaves the others alone."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Space:
    """The widths that a program can take."""

    program: Program
    choices: tuple[Choice, ...]
    align: int
    inner_only: bool
    """Whether residual streams are left alone."""
    exact: bool
    """Whether it is limited to units that a gate can represent."""
    constraints: WidthConstraints = FREE
    unaligned: tuple[str, ...] = ()
    """Groups whose width cannot be aligned, since layers tie their channels unevenly."""
    held: Mapping[str, str]
    """Groups that have a ratio and stay at full width, with the reason."""
    restrictions: tuple[Restriction, ...] = ()

    @property
    def units(self) -> NDArray[np.int64]:
        """Every unit that may be removed."""
        free = [c.group.units for c in self.choices if c.counts[-1] < len(c.group.units)]
        return np.concatenate([np.zeros(0, np.int64), *free])

    @property
    def is_to_shrink(self) -> bool:
        """Whether a width is still larger than the user fixed it."""
        return any(choice.counts[0] < len(choice.group.units) for choice in self.choices)

    def smallest(self) -> Cost:
        """Return the cost with every width at its minimum."""
        return cost_after(self.program, self._minimum())

    def smallest_program(self) -> Program:
        """Return the program with every width at its minimum."""
        return pruned(self.program, self._minimum())

    def restricted(self, restriction: Restriction) -> "Space":
        """Return the space without the groups that a method cannot change; maybe none is left."""
        out = [choice.group for choice in self.choices if not restriction.admits(choice.group)]
        names = {group.name for group in out}
        return replace(
            self,
            choices=tuple(choice for choice in self.choices if choice.group.name not in names),
            held={**self.held, **dict.fromkeys(names & self.constraints.targets.keys(), restriction.reason)},
            restrictions=(*self.restrictions, restriction),
        )

    def require_targets(self) -> None:
        """Refuse a ratio that changes no width.

        Raises:
            StructureError: it names the layer and the reason.
        """
        targets = self.constraints.targets.values()
        left = {choice.group.name: choice.counts[0] for choice in self.choices}
        for pattern in dict.fromkeys(pattern for target in targets for pattern in target.patterns):
            covered = [target for target in targets if pattern in target.patterns]
            if any(target.ratio == 1 or left.get(target.group, target.units) < target.units for target in covered):
                continue
            first = covered[0]
            raise StructureError(
                f"{named('ratios')}: {pattern!r} changes no width: {first.layer} keeps its {first.units} units, "
                f"since {self.held.get(first.group) or self._rounding(first)}; give another ratio, or leave it out"
            ).at("ratios")
        if self.constraints.only_targets and not self.is_to_shrink:
            raise StructureError(
                f"{keyword('ratios')} leaves every width as it is; give a smaller ratio, or {keyword('budget')} as well"
            ).at("ratios")

    def notes(self) -> tuple[str, ...]:
        """Return notes on the widths that the user fixed, and on those that cannot be aligned."""
        counts = {choice.group.name: choice.counts[0] for choice in self.choices}
        targets = self.constraints.targets
        cut = [f"{t.layer} {counts[t.group]} of {t.units}" for t in targets.values() if t.group in counts]
        notes = [f"units that stay by ratio: {listed(cut)}"] if cut else []
        held = [name for name in self.held if targets[name].ratio < 1]
        notes += [f"{targets[name].layer} keeps its width despite its ratio: {self.held[name]}" for name in held]
        if self.unaligned:
            shown = ", ".join(self.unaligned[:3])
            notes.append(f"widths of {len(self.unaligned)} groups cannot be kept multiples of {self.align}: {shown}")
        return tuple(notes)

    def _rounding(self, target: Target) -> str:
        return f"{target.ratio:g} of them rounds to that in multiples of {assigned('align', self.align)}"

    def _minimum(self) -> Mask:
        """Return the ids that stay at the minimum widths, at least one unit of each tensor."""
        facts, pinned = structure(self.program), set[int]()
        while True:
            removed = np.concatenate([_beyond_minimum(choice, pinned) for choice in self.choices])
            keep = facts.mask(removed)
            emptied = set(facts.empty_dims(keep))
            if not emptied or emptied <= pinned:
                return keep
            pinned |= emptied

    def unconstrained(self) -> "Space":
        """Return the same space without the user's constraints."""
        found = space(self.program, align=self.align, inner_only=self.inner_only, exact=self.exact)
        for restriction in self.restrictions:
            found = found.restricted(restriction)
        return found


def space(
    program: Program,
    *,
    align: int = 8,
    inner_only: bool = False,
    exact: bool = True,
    constraints: WidthConstraints = FREE,
) -> Space:
    """Return the widths that `program` can take.

    Args:
        program: the captured model.
        align: widths are multiples of this; a group too narrow for it keeps its width.
        inner_only: leave residual streams alone: the channels that flow through sums.
        exact: leave alone the units that no gate can represent, such as the hidden width of a transformer, whose layer
            norms compute something else on the channels that stay.
        constraints: the widths that the user fixed.

    Raises:
        StructureError: no width can change; the message gives the reason.
    """
    if align < 1:
        raise StructureError(f"align={align}: it must be at least 1")
    facts, kept = structure(program), constraints.kept_groups(program)
    obstacles = _Obstacles(program, inner_only=inner_only, exact=exact)
    choices, unaligned, held = list[Choice](), list[str](), dict[str, str]()
    for group in facts.groups:
        target = constraints.targets.get(group.name)
        if group.name in kept or (target is None and constraints.only_targets):
            continue
        if (obstacle := obstacles.of(group)) is not None:
            held |= {} if target is None else {group.name: obstacle}
            continue
        step = aligned_step(facts, group, align)
        unaligned += [] if step else [group.name]
        counts = _counts(len(group.units), step or 1, target)
        if len(counts) > 1 or target is not None:
            choices.append(Choice(group, counts))
    found = Space(
        program=program, choices=tuple(choices), align=align, inner_only=inner_only, exact=exact,
        constraints=constraints, unaligned=tuple(unaligned), held=held,
    )  # fmt: skip
    if not choices:
        found.require_targets()
        raise StructureError(_why_nothing(found))
    return found


def _why_nothing(found: Space) -> str:
    """Return the reason for which no width can change."""
    if found.constraints.keep and _can_change(found):
        return f"{keyword('keep')} holds every width that could change; name fewer layers"
    return why_nothing(found.program, found.align, exact=found.exact)


def _can_change(found: Space) -> bool:
    """Return True if a width can change without the user's constraints."""
    try:
        return bool(found.unconstrained().choices)
    except StructureError:
        return False


class _Obstacles:
    """The reasons for which groups keep their width."""

    def __init__(self, program: Program, *, inner_only: bool, exact: bool) -> None:
        self._failures = unremovable(program)
        self._streams = residual_streams(program) if inner_only else frozenset[int]()
        self._elastic = {group.name for group in elastic_groups(program)} if exact else None

    def of(self, group: ChannelGroup) -> str | None:
        """Return why a group keeps its width; `None` if it can change."""
        if (failure := self._failures.get(group.name)) is not None:
            return f"without one of its units the model would not run: {failure}"
        if not self._streams.isdisjoint(group.units.tolist()):
            return f"it is part of a residual stream, which {assigned('inner_only', value=True)} leaves alone"
        if self._elastic is not None and group.name not in self._elastic:
            return f"{NO_GATE}; use {assigned('method', 'prune')}, which needs no gates"
        return None


def _beyond_minimum(choice: Choice, pinned: set[int]) -> NDArray[np.int64]:
    """Return the units of a group that its minimum width leaves out; the `pinned` ones stay."""
    units = choice.group.units
    first = np.isin(units, sorted(pinned))
    count = min((count for count in choice.counts if count >= first.sum()), default=choice.counts[0])
    return units[np.argsort(~first, kind="stable")][count:]


def _counts(size: int, step: int, target: Target | None) -> tuple[int, ...]:
    """Return the numbers of units that a group of `size` may keep, largest first; one number if the user fixed it."""
    if target is not None:
        return (min(target.count(step), size),)
    return tuple(dict.fromkeys([size, *range(size - size % step, 0, -step)]))


def pruning(program: Program, keep: Mask) -> PruneChannels:
    """Return the pass that reduces `program` to the ids of `keep`."""
    drop = [
        (group.name, tuple(np.flatnonzero(~keep[group.units]).tolist()))
        for group in structure(program).groups
        if not keep[group.units].all()
    ]
    return PruneChannels(tuple(drop))


def pruned(program: Program, keep: Mask) -> Program:
    """Return the program with the ids of `keep` alone.

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
