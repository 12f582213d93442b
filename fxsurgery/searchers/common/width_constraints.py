"""Constraints on single widths: layers that keep theirs, and layers that keep a given fraction of their units.

Layers are named as `layer_names` describes. Layers that share their channels change together, so a constraint on one
holds for its whole channel group. Of several `ratios` for one layer, its exact name goes before any pattern, and of
several patterns the last one counts. A ratio for a container or a pattern leaves out the channels that its layers share
with layers that no entry covers, such as a residual stream: `{"layer1": 0.5}` changes what is inside `layer1` alone.

    units that stay = ratio * units, rounded to a multiple of `align`, at least one multiple

A search in several rounds meets the ratios in the first one.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from fxsurgery.analysis.layer_widths import LayerWidth, layer_widths
from fxsurgery.analysis.structure import structure
from fxsurgery.argument_names import command, keyword, named
from fxsurgery.errors import SpecError, StructureError
from fxsurgery.program import Program
from fxsurgery.searchers.common.layer_names import LayerNames, Matched

_SHOWN = 6


@dataclass(frozen=True)
class Target:
    """The fraction of the units of one channel group that stays."""

    group: str
    ratio: float
    units: int
    """How many the group has in the model that was given."""
    layer: str
    """The layer that was matched."""
    patterns: tuple[str, ...]
    """The patterns that cover layers of the group."""
    others: tuple[str, ...] = ()
    """Layers that produce the group's channels as well, and that no pattern covers."""

    def count(self, step: int) -> int:
        """Return how many units stay, a multiple of `step` unless all do.

        Example:
            >>> half = Target("conv1", 0.5, 20, "conv1", ("conv*",))
            >>> half.count(1), half.count(8), replace(half, ratio=0.01).count(8), replace(half, ratio=1.0).count(8)
            (10, 8, 8, 20)
        """
        if self.ratio == 1:
            return self.units
        return min(max(math.floor(self.ratio * self.units / step + 0.5), 1) * step, self.units)


@dataclass(frozen=True)
class WidthConstraints:
    """The constraints on the widths of a model."""

    keep: tuple[str, ...] = ()
    """The names and patterns of layers that keep their width."""
    kept: tuple[str, ...] = ()
    """The layers that they stand for."""
    kept_widths: frozenset[str] = frozenset()
    """Channel groups that were named themselves."""
    ratios: Mapping[str, float] = field(default_factory=dict)
    """The fraction of their units that layers keep, by name or pattern."""
    targets: Mapping[str, Target] = field(default_factory=dict)
    """By channel group."""
    left_out: tuple[str, ...] = ()
    """Notes on the channels that patterns of `ratios` cover in part, which they leave as they are."""
    only_targets: bool = False
    """Whether no other width may change: there are ratios, and neither a budget nor a penalty."""

    @classmethod
    def of(
        cls,
        model: nn.Module,
        program: Program,
        keep: Sequence[str | nn.Module] = (),
        ratios: Mapping[str | nn.Module, float] | None = None,
        *,
        has_goal: bool = True,
    ) -> "WidthConstraints":
        """Return the constraints that names, patterns and modules of a model stand for.

        Args:
            model: the user's model.
            program: captured from it.
            keep: layers that keep their width.
            ratios: the fraction of the units that stays, by layer.
            has_goal: whether the other widths are to shrink as well, for a budget or a penalty.

        Raises:
            SpecError: a name matches nothing, or two constraints contradict each other.
            StructureError: a ratio is for layers whose width cannot change.
        """
        names = LayerNames(model, program)
        patterns = tuple(names.pattern_of(one, "keep") for one in keep)
        matched = [names.find(pattern, "keep") for pattern in patterns]
        kept = dict.fromkeys(layer for one in matched for layer in one.layers)
        made = cls(
            keep=patterns,
            kept=tuple(kept),
            kept_widths=frozenset(group for one in matched for group in one.groups),
            only_targets=bool(ratios) and not has_goal,
        )
        asked = {names.pattern_of(one, "ratios"): float(ratio) for one, ratio in (ratios or {}).items()}
        found = [(names.find(pattern, "ratios"), ratio) for pattern, ratio in asked.items()]
        if not found:
            return made
        members = _Members(program, found)
        return replace(made, ratios=asked, targets=_targets(program, made, members), left_out=members.notes())

    def __bool__(self) -> bool:
        return bool(self.keep or self.targets)

    def kept_groups(self, program: Program) -> frozenset[str]:
        """Return the names of the channel groups that keep their width in `program`, whatever it was made of."""
        layers = layer_widths(program)
        return self.kept_widths | {group for name in self.kept if name in layers for group in layers[name].groups}

    def reached(self) -> "WidthConstraints":
        """Return the constraints on a program whose ratios are met: their layers keep what they have.

        Its channel groups may be others: where one head of attention is left, its channels are.
        """
        layers = dict.fromkeys([*self.kept, *(target.layer for target in self.targets.values())])
        return replace(self, kept=tuple(layers), targets={})

    def arguments(self) -> str:
        """Return the arguments that hold them, as a message names them."""
        given = (("keep", self.keep), ("ratios", self.targets))
        return " and ".join(keyword(name) for name, value in given if value)

    def notes(self, program: Program) -> tuple[str, ...]:
        """Return notes on the layers that keep their width or have a ratio, and on those that share their channels."""
        tied = [
            f"the ratio of {target.layer} is also that of what shares channels with it: {listed(target.others)}"
            for target in self.targets.values()
            if target.others and target.ratio < 1
        ]
        return (*self._kept_note(program), *tied, *self.left_out)

    def _kept_note(self, program: Program) -> tuple[str, ...]:
        if not self.keep:
            return ()
        groups = self.kept_groups(program)
        tied = [
            width.name
            for width in layer_widths(program).values()
            if width.produces and width.name not in self.kept and not groups.isdisjoint(width.groups)
        ]
        layers = layer_widths(program)
        kept = [name for name in self.kept if layers[name].produces] or [*self.kept]
        more = f"; and what shares channels with them: {listed(tied)}" if tied else ""
        return (f"kept at full width: {listed([*kept, *sorted(self.kept_widths)])}{more}",)


FREE = WidthConstraints()
"""No constraints."""


def listed(names: Sequence[str]) -> str:
    """Return names in a sentence, the first few of many."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _targets(program: Program, made: WidthConstraints, members: "_Members") -> Mapping[str, Target]:
    """Return the target of each group that the patterns are for."""
    layers, targets, kept = layer_widths(program), dict[str, Target](), made.kept_groups(program)
    units = {group.name: len(group.units) for group in structure(program).groups}
    for layer, group, one, ratio in members.included():
        if group in kept:
            raise SpecError(_kept_as_well(layers, made, group, layer)).at("ratios")
        other = targets.get(group, Target(group, ratio, units[group], layer, (), members.others(group)))
        if other.ratio != ratio:
            raise SpecError(
                f"{named('ratios')}: {other.layer!r} shall keep {other.ratio:g} and {layer!r} {ratio:g} of the same "
                "channels, which they share; give both one ratio"
            ).at("ratios")
        targets[group] = replace(other, patterns=(*other.patterns, one.pattern))
    return targets


class _Members:
    """Pairs of a layer and a channel group that the entries of `ratios` cover, each with the entry that counts."""

    def __init__(self, program: Program, found: Sequence[tuple[Matched, float]]) -> None:
        self._layers = layer_widths(program)
        self._asked = dict[tuple[str, str], tuple[Matched, float]]()
        for one, ratio in sorted(found, key=lambda pair: pair[0].is_exact):
            pairs = list(self._pairs(one))
            if not pairs:
                raise StructureError(
                    f"{named('ratios')}: {one.pattern!r} stands for {listed(one.layers)}, whose width cannot change; "
                    f"see {command('inspect')}, and leave it out"
                ).at("ratios")
            self._asked |= dict.fromkeys(pairs, (one, ratio))
        # Norms produce no channels: a pattern that covers norms alone is for their channels.
        self._groups = {
            group
            for (layer, group), (one, _) in self._asked.items()
            if one.is_exact or not self._layers[layer].produces or not self.others(group)
        }
        self._require_groups()

    def included(self) -> Iterator[tuple[str, str, Matched, float]]:
        """Yield each layer and channel group that an entry is for, with the entry and its ratio."""
        for (layer, group), (one, ratio) in self._asked.items():
            if group in self._groups:
                yield layer, group, one, ratio

    def others(self, group: str) -> tuple[str, ...]:
        """Return the layers that produce a group's channels and that no entry covers."""
        makers = [width.name for width in self._layers.values() if width.produces and group in width.groups]
        return tuple(name for name in makers if (name, group) not in self._asked)

    def notes(self) -> tuple[str, ...]:
        """Return a note on each channel group that entries cover in part and leave out."""
        return tuple(
            f"the ratio of {pattern!r} leaves out {text}; give {layer!r} a ratio to change all of them"
            for pattern, layer, text in self._left_out()
        )

    def _require_groups(self) -> None:
        """Refuse an entry that is for nothing.

        Raises:
            StructureError: all channels of its layers are shared with layers that no entry covers.
        """
        useful = {one.pattern for _, _, one, _ in self.included()}
        for pattern, layer, text in self._left_out():
            if pattern not in useful:
                raise StructureError(
                    f"{named('ratios')}: {pattern!r} changes no width: it stands for {text}; give {layer!r} a "
                    "ratio to change all of them"
                ).at("ratios")

    def _left_out(self) -> Iterator[tuple[str, str, str]]:
        """Yield each pattern that leaves out a group, one of its layers of the group, and a text on all layers."""
        for group in dict.fromkeys(group for _, group in self._asked if group not in self._groups):
            inside = [layer for layer, other in self._asked if other == group]
            pattern = self._asked[inside[0], group][0].pattern
            text = f"{listed(inside)}, whose channels are shared with {listed(self.others(group))} outside of it"
            yield pattern, inside[0], text

    def _pairs(self, one: Matched) -> Iterator[tuple[str, str]]:
        """Yield what an entry covers, as pairs of a layer and a channel group.

        These are the layers that produce channels, or the norms of a pattern that covers no such layer.
        """
        covered = [self._layers[name] for name in one.layers]
        for width in [width for width in covered if width.produces] or covered:
            yield from ((width.name, group) for group in width.groups)
        for group in one.groups:
            yield next(width.name for width in self._layers.values() if group in width.groups), group


def _kept_as_well(layers: Mapping[str, LayerWidth], made: WidthConstraints, group: str, layer: str) -> str:
    """Return the message on a ratio for channels that a kept layer has."""
    keeper = next((name for name in made.kept if group in layers[name].groups), group)
    told = (
        f"{layer!r} is in {keyword('keep')} too"
        if keeper == layer
        else f"{layer!r} shares its channels with {keeper!r}"
    )
    where = "" if keeper == layer else f", which {keyword('keep')} keeps at full width"
    return f"{named('ratios')}: {told}{where}; take one of the two out"
