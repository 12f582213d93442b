"""Match names, patterns and modules to the layers of a user's model."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from torch import nn

from fxsurgery.analysis.layer_widths import layer_widths
from fxsurgery.argument_names import keyword, named
from fxsurgery.errors import SpecError
from fxsurgery.option_text import shown
from fxsurgery.program import Program

_SHOWN = 3
_WILDCARDS = frozenset("*?[")


def require_layers(keep: object, ratios: object) -> None:
    """Refuse layers that are neither names nor modules, and ratios that are no fractions.

    Args:
        keep: one layer, or several.
        ratios: ratios by layer; `None` for none.

    Raises:
        SpecError: it names the argument and what is wrong with it.
    """
    if not isinstance(ratios, Mapping | None):
        text = f"{keyword('ratios')}{shown(ratios)}: it must be a dict, such as {{'layer4.*': 0.5}}"
        raise SpecError(text).at("ratios")
    kept = keep if isinstance(keep, Collection) and not isinstance(keep, str | nn.Module) else ()
    for argument, layers in (("keep", kept), ("ratios", ratios or ())):
        if wrong := [layer for layer in layers if not isinstance(layer, str | nn.Module)]:
            raise SpecError(
                f"{named(argument)}: {shown(wrong[0])} is no layer; name a module by its path, such as 'layer4.*', or "
                "pass a module of the model"
            ).at(argument)
    for layer, ratio in (ratios or {}).items():
        if isinstance(ratio, bool) or not isinstance(ratio, int | float | np.floating) or not 0 < ratio <= 1:
            raise SpecError(
                f"{named('ratios')}: {shown(ratio)} for {shown(layer)} is the fraction of the units that stays: it "
                "must be a number greater than 0 and at most 1"
            ).at("ratios")


@dataclass(frozen=True)
class Matched:
    """The layers that a name or pattern matches."""

    pattern: str
    layers: tuple[str, ...]
    """The layers, in the order in which they run."""
    groups: tuple[str, ...]
    """Channel groups that were named themselves, such as `conv1#2`."""
    is_exact: bool
    """Whether the pattern is the name of a single layer or channel group."""


@dataclass(frozen=True, eq=False)
class LayerNames:
    """The names of a model's modules, layers and widths.

    Example:
        >>> import torch
        >>> from fxsurgery import capture
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 1)).eval()
        >>> names = LayerNames(model, capture(model, torch.ones(1, 3, 4, 4)))
        >>> names.find("[02]", "keep").layers, names.pattern_of(model[2], "keep")
        (('0', '2'), '2')
    """

    model: nn.Module
    """The user's."""
    program: Program
    """Captured from it."""

    def pattern_of(self, asked: str | nn.Module, argument: str) -> str:
        """Return a name or pattern as it is; of a module of the model, its path.

        Raises:
            SpecError: the module is not part of the model.
        """
        if isinstance(asked, str):
            return asked
        paths = self._paths.get(id(asked))
        if paths is None:
            raise SpecError(
                f"{named(argument)}: a {type(asked).__name__} that is not one of the model's own modules; pass a "
                "module that the model holds, or its name"
            ).at(argument)
        return paths[0] or "*"

    def find(self, pattern: str, argument: str) -> Matched:
        """Return the layers that a pattern covers: those it matches, and those inside of the modules it matches.

        Args:
            pattern: the path of a module, the name of a width, or a pattern of `fnmatch`.
            argument: that holds the pattern, for messages.

        Raises:
            SpecError: nothing has such a name, or what has it has no channels.
        """
        known = self._known
        hits = [pattern] if pattern in known else [name for name in known if fnmatchcase(name, pattern)]
        if not hits:
            raise SpecError(
                f"{named(argument)}: no layer of the model is named {pattern!r}; {self._nearest(pattern)}"
            ).at(argument)
        covered = dict.fromkeys(layer for hit in hits for layer in self._inside(hit))
        layers = tuple(name for name in layer_widths(self.program) if name in covered)
        groups = tuple(hit for hit in hits if hit in self._groups and hit not in layer_widths(self.program))
        if not layers and not groups:
            raise SpecError(
                f"{named(argument)}: {pattern!r} stands for {', '.join(hits[:_SHOWN])}, which has no channels of its "
                f"own; name a convolution, a linear layer or a norm, such as {self._examples()}"
            ).at(argument)
        return Matched(pattern, layers, groups, is_exact=hits == [pattern] and len(layers) + len(groups) == 1)

    @cached_property
    def _paths(self) -> dict[int, list[str]]:
        """The paths of each module of the model, by its `id`: several for a module that is shared."""
        paths = dict[int, list[str]]()
        for path, module in self.model.named_modules(remove_duplicate=False):
            paths.setdefault(id(module), []).append(path)
        return paths

    @cached_property
    def _groups(self) -> frozenset[str]:
        return frozenset(group for width in layer_widths(self.program).values() for group in width.groups)

    @cached_property
    def _known(self) -> dict[str, None]:
        modules = [path for paths in self._paths.values() for path in paths if path]
        return dict.fromkeys([*modules, *layer_widths(self.program), *sorted(self._groups)])

    def _inside(self, hit: str) -> Iterator[str]:
        """Yield the layers at a path and below it, under every name that a shared module has."""
        under = f"{hit}."
        for paths in self._paths.values():
            if any(path == hit or path.startswith(under) for path in paths):
                yield from paths
        yield from (name for name in layer_widths(self.program) if name == hit or name.startswith(under))

    def _nearest(self, pattern: str) -> str:
        """Return a hint at the names that are most like a pattern."""
        bare = "".join(letter for letter in pattern if letter not in _WILDCARDS).strip(".]")
        near = get_close_matches(bare, list(self._known), n=_SHOWN, cutoff=0.5)
        return f"did you mean {' or '.join(map(repr, near))}?" if near else f"use a name such as {self._examples()}"

    def _examples(self) -> str:
        return ", ".join(map(repr, list(layer_widths(self.program))[:_SHOWN]))
