"""Configurations of a supernet, and the space of all of them, as plain values."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fxsurgery.errors import SpecError

Picks = tuple[tuple[str, int], ...]
"""Pairs of a choice's name and the selected option."""
Choices = tuple[tuple[str, tuple[int, ...]], ...]
"""Pairs of a choice's name and its options, smallest first."""


@dataclass(frozen=True)
class Subnet:
    """A configuration of a supernet: literals only, so that it can be a field of a pass or a line in a journal."""

    widths: Picks = ()
    """Number of units to keep per channel group: the most important ones."""
    depths: Picks = ()
    """Number of blocks to keep per stage: the first ones."""
    kernels: Picks = ()
    """Kernel size per convolution: the largest side of a kernel that is not square."""


@dataclass(frozen=True)
class ElasticSpace:
    """All choices of a supernet."""

    widths: Choices = ()
    depths: Choices = ()
    kernels: Choices = ()

    @property
    def size(self) -> int:
        """Number of configurations, including those that differ only in blocks that are off."""
        return math.prod(len(options) for _, options in (*self.widths, *self.depths, *self.kernels))

    @property
    def largest(self) -> Subnet:
        """The largest configuration: the original program, and the initial state of a supernet."""
        return self._each(lambda options: options[-1])

    @property
    def smallest(self) -> Subnet:
        """The smallest configuration."""
        return self._each(lambda options: options[0])

    def sample(self, generator: torch.Generator) -> Subnet:
        """Return a random configuration; each choice is drawn uniformly and independently."""
        return self._each(lambda options: options[int(torch.randint(len(options), (), generator=generator))])

    def complete(self, subnet: Subnet) -> Subnet:
        """Return `subnet` completed by the largest option of every missing choice, in the order of this space.

        Raises:
            SpecError: it names a choice or option that does not exist.
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
