"""What switches units and blocks off."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import override

from fxsurgery.nn.elastic.space import Choices


class UnitMask(nn.Module):
    """Silence the units that are beyond the active widths, along one dim.

    The units of the groups of this site are numbered on from group to group, by importance in each. The two
    buffers run along the channels, so that they are pruned with them.
    """

    place: Tensor
    """(channels,) the number of each channel's unit; -1 for what is always on."""
    limit: Tensor
    """(channels,) a channel is on while its `place` is below this."""

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
        """`x` with the channels that are off at 0."""
        keep = (self.place < self.limit).to(x.dtype)
        for _ in range(x.dim() - self.dim % x.dim() - 1):
            keep = keep.unsqueeze(-1)
        return x * keep

    @override
    def extra_repr(self) -> str:
        return f"{', '.join(name for name, _ in self.groups)}, dim={self.dim}"


class BlockSwitch(nn.Module):
    """Give on what a residual branch computes, or 0: then the block is the identity."""

    def __init__(self, stage: str, position: int, options: tuple[int, ...]) -> None:
        super().__init__()
        self.stage = stage
        self.position = position
        """Of the block in its stage, from 0."""
        self.options = options
        self.is_on = True

    @override
    def forward(self, x: Tensor) -> Tensor:
        """`x`, or zeros, which a sum may write into; no gradient reaches a branch that is off."""
        return x if self.is_on else torch.zeros_like(x)

    @override
    def extra_repr(self) -> str:
        return f"{self.stage}, position={self.position}"
