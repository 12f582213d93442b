"""Widen channel groups by copies of their units (Net2Wider: Chen, Goodfellow, Shlens 2016).

    g(j) = j for the old units, a random old one for the new;   x'[j] = x[g(j)]
    W'[o, j] = s[o's layer, j] W[o, g(j)],   s > 0 random,   sum of s over {k : g(k) = g(j)} = 1

A copied unit includes its row of every producer, its entries of every norm, and its place in every residual sum,
concatenation, depthwise convolution and attention head. Each consumer splits its column between the copies at random:
with equal shares they would get equal gradients and stay equal forever. Exact, also in train mode (batch norm sees
equal channels). Under a layer norm, all of its units must be copied equally often. Copies are next to their unit, which
is the formula up to the order of the channels.

A layer with a single channel belongs to no channel group; it is named by its path (`rewriting.single_channel`).
"""

import random
from collections.abc import Callable, Collection, Container, Iterator
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
import torch
from typing_extensions import override

from fxsurgery.analysis.structure import ChannelGroup, Counts, structure
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.option_types import MOST_UNITS, Seed
from fxsurgery.program import Program
from fxsurgery.rewriting.duplication import copies_mixed_up, duplicate, duplication
from fxsurgery.rewriting.single_channel import can_copy, copy, single_channel_layers
from fxsurgery.surgery import Effect, Rewrite


@checked_construction
@dataclass(frozen=True)
class Widen(Rewrite):
    """Add units to channel groups, each a copy of an existing one."""

    name: ClassVar[str] = "widen"
    follows_structure: ClassVar[bool] = True
    add: tuple[tuple[str, int], ...]
    """Number of units to add to each channel group, by name, or to one layer with a single output, by path. A multiple
    of the size copies all units equally often."""
    seed: Seed = 0
    """Seed of the choice of the units to copy, and of the shares."""

    @classmethod
    @override
    def candidates(
        cls,
        program: Program,
        step: Callable[[int], int] | None = None,
        among: Collection[str] | None = None,
        seed: int = 0,
    ) -> Iterator[Self]:
        """Yield the widening of each channel group by a quarter, or to twice its size if a norm runs over it.

        Args:
            program: the program to change.
            step: returns the number of units to add to a width, instead of a quarter; under a norm, its multiple.
            among: the names to try, since each trial takes time; all by default.
            seed: seed of the moves.
        """
        for group in structure(program).groups:
            if among is not None and group.name not in among:
                continue
            size = len(group.units)
            wanted = max(1, size // 4) if step is None else step(size)
            for more in (wanted, max(1, round(wanted / size)) * size):
                move = cls(((group.name, more),), seed)
                if size > 1 and duplication(program).obstacle(counts := move.counts(program)) is None:
                    if copies_mixed_up(program, counts) is None:
                        yield move
                    break
        for path in single_channel_layers(program):
            more = 1 if step is None else step(1)
            if (among is None or path in among) and can_copy(program, path, more):
                yield cls(((path, more),), seed)

    def counts(self, program: Program) -> Counts:
        """Return the number of copies of each id of the structure after the change.

        Raises:
            SpecError: a group does not exist, or a number is not positive.
        """
        facts, rng = structure(program), random.Random(self.seed)
        counts = np.ones(facts.size, np.int64)
        for name, more in self.add:
            group = facts.named(name)
            _require_few(name, more)
            for unit in _chosen(group, more, rng, duplication(program).blocked):
                counts[unit] += 1
        return counts

    @override
    def rewrite(self, edit: Editor) -> Effect:
        alone = single_channel_layers(edit.program)
        if any(name in alone for name, _ in self.add):
            self._copy(edit)
            return Effect.EXACT
        counts = self.counts(edit.program)
        if (refusal := duplication(edit.program).obstacle(counts)) or (
            refusal := duplicate(edit, counts, torch.Generator().manual_seed(self.seed))
        ):
            edit.decline(refusal)
        elif not edit.changes:
            edit.refuse("output", "there is no unit to add to")
        return Effect.EXACT

    def _copy(self, edit: Editor) -> None:
        """Widen a layer with a single output."""
        (path, more), *others = self.add
        if others:
            raise SpecError(f"{path} or another of these layers has a single output: widen one in a pass")
        _require_few(path, more)
        if refusal := copy(edit, path, more, torch.Generator().manual_seed(self.seed)):
            edit.decline(refusal)


def _require_few(name: str, more: int) -> None:
    if more < 1:
        raise SpecError(f"{name}: {more} units to add; it must be at least 1")
    if more > MOST_UNITS:
        raise SpecError(f"{name}: {more:,} units to add; it must be at most {MOST_UNITS:,}")


def _chosen(group: ChannelGroup, more: int, rng: random.Random, blocked: Container[int]) -> list[int]:
    """Return the units to copy: all of them as often as possible, then random ones."""
    units: list[int] = [unit for unit in group.units.tolist() if unit not in blocked] or group.units.tolist()
    rounds, rest = divmod(more, len(units))
    return units * rounds + [rng.choice(units) for _ in range(rest)]
