"""Modules that switch units and blocks off."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from fxsurgery.nn.elastic.space import Choices


class UnitMask(nn.Module):
    """Zeroes the units beyond the active widths, along one dim.

    Units are numbered across the groups of this site, by importance within each group. Both buffers have one entry per
    channel, so they are pruned together with the channels.

    Args:
        groups: names of the channel groups with their width options.
        place: number of each channel's unit, shape (channels,).
        dim: the channel dim.
    """

    place: Tensor
    """Number of each channel's unit, shape (channels,); -1 for channels that are always on."""
    limit: Tensor
    """Upper bound per channel, shape (channels,): a channel is on while its `place` is below."""

    def __init__(self, groups: Choices, place: Tensor, dim: int) -> None:
        super().__init__()
        self.groups = groups
        self.dim = dim
        limit = torch.full_like(place, sum(options[-1] for _, options in groups))
        self.register_buffer("place", place)
        self.register_buffer("limit", limit)

    def set_widths(self, widths: Mapping[str, int]) -> None:
        """Keep the first `widths[group]` units of each group."""
        limit, start = self.limit.clone(), 0
        for group, options in self.groups:
            own = (self.place >= start) & (self.place < start + options[-1])
            limit[own] = start + widths[group]
            start += options[-1]
        self.limit = limit

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return `x` with the channels that are off set to 0."""
        keep = (self.place < self.limit).to(x.dtype)
        for _ in range(x.dim() - self.dim % x.dim() - 1):
            keep = keep.unsqueeze(-1)
        return x * keep

    @override
    def extra_repr(self) -> str:
        return f"{', '.join(name for name, _ in self.groups)}, dim={self.dim}"


class BlockSwitch(nn.Module):
    """Passes on the output of a residual branch, or zeros, which makes the block the identity.

    Args:
        stage: name of the stage.
        position: position of the block in its stage, from 0.
        options: allowed numbers of active blocks in the stage.
    """

    def __init__(self, stage: str, position: int, options: tuple[int, ...]) -> None:
        super().__init__()
        self.stage = stage
        self.position = position
        """Position of the block in its stage, from 0."""
        self.options = options
        self.is_on = True

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, or new zeros; no gradient reaches a branch that is off."""
        return x if self.is_on else torch.zeros_like(x)

    @override
    def extra_repr(self) -> str:
        return f"{self.stage}, position={self.position}"
