"""A configuration of a supernet, and the space of all of them: plain values."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fxsurgery.errors import SpecError

Picks = tuple[tuple[str, int], ...]
"""By name of a choice, the option that is picked."""
Choices = tuple[tuple[str, tuple[int, ...]], ...]
"""By name of a choice, its options, smallest first."""


@dataclass(frozen=True)
class Subnet:
    """A configuration of a supernet: literals only, so that it can be the field of a pass or a line in a journal."""

    widths: Picks = ()
    """By channel group, how many units it keeps: the most important ones."""
    depths: Picks = ()
    """By stage, how many of its blocks it keeps: the first ones."""
    kernels: Picks = ()
    """By conv, the size of its kernel: the largest side of one that is not square."""


@dataclass(frozen=True)
class ElasticSpace:
    """Every choice of a supernet."""

    widths: Choices = ()
    depths: Choices = ()
    kernels: Choices = ()

    @property
    def size(self) -> int:
        """The number of configurations; those that differ in blocks that are off alone are counted as well."""
        return math.prod(len(options) for _, options in (*self.widths, *self.depths, *self.kernels))

    @property
    def largest(self) -> Subnet:
        """The program before, and what a supernet starts at."""
        return self._each(lambda options: options[-1])

    @property
    def smallest(self) -> Subnet:
        """Every choice at its least."""
        return self._each(lambda options: options[0])

    def sample(self, generator: torch.Generator) -> Subnet:
        """A configuration drawn uniformly: each choice on its own."""
        return self._each(lambda options: options[int(torch.randint(len(options), (), generator=generator))])

    def complete(self, subnet: Subnet) -> Subnet:
        """`subnet` with the choices that it does not name at their largest, in the order of this space.

        Raises:
            SpecError: it names a choice or an option that there is not.
        """
        largest = self.largest
        return Subnet(
            _completed("width", self.widths, largest.widths, subnet.widths),
            _completed("depth", self.depths, largest.depths, subnet.depths),
            _completed("kernel", self.kernels, largest.kernels, subnet.kernels),
        )

    def _each(self, pick: Callable[[tuple[int, ...]], int]) -> Subnet:
        kinds = [tuple((name, pick(options)) for name, options in k) for k in (self.widths, self.depths, self.kernels)]
        return Subnet(*kinds)


def _completed(kind: str, choices: Choices, largest: Picks, picks: Picks) -> Picks:
    known = dict(choices)
    for name, option in picks:
        if name not in known:
            raise SpecError(f"no elastic {kind} is named {name!r}; there are: {', '.join(known) or 'none'}")
        if option not in known[name]:
            raise SpecError(f"{name} cannot take a {kind} of {option}; it takes {', '.join(map(str, known[name]))}")
    return tuple({**dict(largest), **dict(picks)}.items())
