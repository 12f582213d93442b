"""Where the positions of a feature map lie, and what a dense layer makes of fewer or more of them.

A dense layer that reads a flattened map has a weight for each channel and position: `W[o, c, p]`. On a map of other
positions q it reads

    W'[o, c, q] = sum_p T[q, p] W[o, c, p]        T: (new, old) positions, a product of one factor a dim

* The old map is exactly `x_old[p] = sum_q A[p, q] x_new[q]`, as where an average pool A goes: T is A transposed, and
  `W' x_new = W x_old` (w / 4 for each of the four under a 2 x 2 window; overlapping windows add up).
* Otherwise T matches places (`nearest`). Where positions get fewer, each old one gives its weight to the nearest new
  one: under a 2 x 2 pool, the sum over each window. Where they get more, each old one shares its weight equally among
  those new ones that it is nearest to.

Every row of weights keeps its sum over positions (T's columns sum to 1), so a channel that is constant over space
counts as it did. That is why the last row and column of an odd map, which a pool without `ceil_mode` does not see, are
added to the window next to them: dropped, their share of each channel's mean would be gone as well.

Source: ECToNAS, appendix A.2. The paper pools the weights themselves: with their mean
(a quarter of what the pooled map needs) or their maximum.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Choice = Literal["structured", "random", "largest", "mean", "maximum"]
"""How to combine the weights of the old positions that a new position replaces: their sum, a random one, the one of
largest |w|, their mean or their maximum."""


@dataclass(frozen=True)
class SpatialAxis:
    """Coordinates of a map's positions along one dim: `start + step * i`, in units of a reference map."""

    start: float = 0.0
    step: float = 1.0

    def through(self, kernel: int, stride: int, padding: float, dilation: int) -> "SpatialAxis":
        """Return the coordinates of the centers of windows."""
        return SpatialAxis(self.start + self.step * ((kernel - 1) * dilation / 2 - padding), self.step * stride)

    def stretched(self, size: int, new: int) -> "SpatialAxis":
        """Return the coordinates of `new` positions that evenly cover `size` ones, as after an adaptive pool."""
        return SpatialAxis(self.start + self.step * (size / new - 1) / 2, self.step * size / new)

    def centers(self, size: int) -> Tensor:
        """Return the coordinate of each position, (size,)."""
        return self.start + self.step * torch.arange(size, dtype=torch.float64)


@dataclass(frozen=True, eq=False)
class Map:
    """A feature map before and after the change, the batch left out: (channels, *positions)."""

    old: tuple[int, ...]
    new: tuple[int, ...]
    factors: tuple[Tensor | None, ...]
    """For each dim, the matrix from weights of old entries to those of new ones: (new, old)."""
    axes: tuple[tuple[SpatialAxis, SpatialAxis] | None, ...]
    """For each dim, the coordinates of old and new positions; `None` for channels."""


@dataclass(frozen=True, eq=False)
class Layout:
    """The entry of a map that each entry of a value is, before and after the change."""

    maps: tuple[Map, ...]
    old: Any
    """Tensors of the value's structure and old shape: entries, counted through all maps."""
    new: Any

    @classmethod
    def of(cls, own: Map, batch: int) -> "Layout":
        """Return the layout of a value that is the map itself."""
        old, new = (torch.arange(math.prod(s)).reshape(1, *s).expand(batch, *s) for s in (own.old, own.new))
        return cls((own,), old, new)

    def axis(self, dim: int) -> tuple[Map, int] | None:
        """Return the map and its dim that `dim` of the value runs along; `None` if there is none."""
        old, new = (_vector(index, dim) for index in (self.old, self.new))
        start = (0, 0)
        for own in self.maps:
            end = (start[0] + math.prod(own.old), start[1] + math.prod(own.new))
            if start[0] <= int(old[0]) < end[0]:
                found = _running(old - start[0], own.old) & _running(new - start[1], own.new)
                # Of several dims of one position, before and after, each is the one; its own place comes first.
                return (own, dim - 1 if dim - 1 in found else min(found)) if found else None
            start = end
        return None

    def columns(self) -> tuple[Tensor, Tensor] | None:
        """Return the old and new entries along the last dim; `None` if other rows differ."""
        found = list[Tensor]()
        for index in (self.old, self.new):
            rows = index.reshape(-1, index.shape[-1])
            apart = rows - rows[:, :1]
            if not torch.equal(apart, apart[:1].expand_as(apart)) or len(rows[0].unique()) < rows.shape[1]:
                return None
            found.append(rows[0])
        return found[0], found[1]

    def channels(self) -> Tensor | None:
        """Return the matrix from old to new channels of a value, (new, old); `None` if unknown."""
        old, new = self._channels(_vector(self.old, 1), 0), self._channels(_vector(self.new, 1), 1)
        if old is None or new is None:
            return None
        found = torch.zeros(len(new[0]), len(old[0]), dtype=torch.float64)
        for place, own in enumerate(self.maps):
            rows, columns = (torch.where(owner == place)[0] for owner, _ in (new, old))
            to, at = new[1][rows], old[1][columns]
            factor = own.factors[0]
            found[rows[:, None], columns] = (to[:, None] == at).double() if factor is None else factor[to][:, at]
        return found

    def _channels(self, vector: Tensor, side: int) -> tuple[Tensor, Tensor] | None:
        """Return the map and channel of each entry; `None` if the entries along `vector` differ in position."""
        shapes = [(own.old, own.new)[side] for own in self.maps]
        ends = torch.tensor([math.prod(shape) for shape in shapes]).cumsum(0)
        strides = torch.tensor([max(math.prod(shape[1:]), 1) for shape in shapes])
        owner = torch.searchsorted(ends, vector, right=True)
        within = vector - (ends - torch.tensor([math.prod(shape) for shape in shapes]))[owner]
        places = within % strides[owner]
        own = (places[owner == place] for place in range(len(shapes)))
        alike = all(bool((entries == entries[:1]).all()) for entries in own)
        return (owner, within // strides[owner]) if alike else None


def _vector(index: Tensor, dim: int) -> Tensor:
    """Return the entries along one dim, at index 0 of all others."""
    return index[tuple(slice(None) if d == dim else 0 for d in range(index.dim()))].contiguous()


def _running(entries: Tensor, shape: Sequence[int]) -> set[int]:
    """Return the dims of a map of `shape` along which `entries` may run from first to last."""
    found = set[int]()
    for dim, size in enumerate(shape):
        stride = math.prod(shape[dim + 1 :])
        runs = size == len(entries) and torch.equal(entries - entries[0], stride * torch.arange(size))
        if runs and int(entries[0]) // stride % size == 0 and (size > 1 or dim):
            found.add(dim)
    return found


def nearest(old: SpatialAxis, new: SpatialAxis, old_size: int, new_size: int) -> Tensor:
    """Match new positions to old ones by distance: (new, old), each column sums to 1.

    Of two that are equally near, the first counts. If there are more new positions, an old one that is nearest to none
    gives its weight to its own nearest.
    """
    places, others = old.centers(old_size), new.centers(new_size)
    apart = (others[:, None] - places[None]).abs().mul(2**20).round()
    to_new = nn.functional.one_hot(apart.argmin(0), new_size).T.double()
    if new_size <= old_size:
        return to_new
    shares = nn.functional.one_hot(apart.argmin(1), old_size).double()
    counts = shares.sum(0, keepdim=True)
    return torch.where(counts > 0, shares / counts.clamp(min=1), to_new)


def aggregate(weight: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
    """Compute `W'[o, q] = sum_p T[q, p] W[o, p]`, (out, *old) to (out, *new); T has a factor or `None` per dim."""
    found = weight.float() if weight.dtype in {torch.float16, torch.bfloat16} else weight
    for dim, factor in enumerate(factors, start=1):
        if factor is not None:
            found = torch.tensordot(found, factor.to(found.device, found.dtype), ([dim], [1])).movedim(-1, dim)
    return found.to(weight.dtype).contiguous()


def chosen(scores: Tensor, factors: Sequence[Tensor | None]) -> Tensor:
    """Return for each new position the old one of the highest score among those it replaces; -1 if there is none.

    Args:
        scores: (rows, *old).
        factors: for each dim, the new position of each old one.

    Returns:
        (rows, new positions), counted through the flattened old ones.
    """
    target, count = torch.zeros((), dtype=torch.int64), 1
    for size, factor in zip(scores.shape[1:], factors, strict=True):
        own = torch.arange(size) if factor is None else factor.argmax(0)
        target = (target[..., None] * (size if factor is None else len(factor)) + own).reshape(*target.shape, size)
        count *= size if factor is None else len(factor)
    order = scores.flatten(1).argsort(1)
    ranks = order.argsort(1)
    best = torch.full((len(scores), count), -1, device=scores.device)
    index = target.flatten().to(scores.device).expand_as(ranks)
    best = best.scatter_reduce(1, index, ranks, "amax")
    return order.gather(1, best.clamp(min=0)).masked_fill(best < 0, -1)


@dataclass(frozen=True)
class Take:
    """How dense weights are transferred."""

    choice: Choice = "structured"
    seed: int = 0


class Taker:
    """Transfers the weights of an old map to a changed one."""

    def __init__(self, take: Take) -> None:
        self._choice, self._generator = take.choice, torch.Generator().manual_seed(take.seed)

    def columns(
        self, weight: Tensor, maps: Sequence[Map], columns: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Return a dense weight (out, in) for the new columns, and the old columns that they equal, if any.

        Args:
            weight: the weight of the old columns.
            maps: the maps of the columns.
            columns: the entries, counted through all maps, that old and new columns are.
        """
        old, new = (index.to(weight.device) for index in columns)
        full = weight.new_zeros(len(weight), sum(math.prod(m.old) for m in maps))
        full[:, old] = weight
        origin = torch.full((full.shape[1],), -1, device=weight.device)
        origin[old] = torch.arange(len(old), device=weight.device)
        parts, sources, start = list[Tensor](), list[Tensor](), 0
        for own in maps:
            end = start + math.prod(own.old)
            part, source = self.entries(full[:, start:end].reshape(-1, *own.old), own.factors)
            parts.append(part)
            sources.append(origin[start:end] if source is None else origin[start:end][source])
            start = end
        index = torch.cat(sources)[new].cpu() if self._choice == "random" else None
        return torch.cat(parts, 1)[:, new].contiguous(), index

    def entries(self, weight: Tensor, factors: Sequence[Tensor | None]) -> tuple[Tensor, Tensor | None]:
        """Return the new weight of a map, (out, new entries), and the old entries that it consists of, if any."""
        if self._choice == "structured" or all(factor is None for factor in factors):
            return aggregate(weight, factors).flatten(1), None
        if self._choice == "mean":
            many = aggregate(torch.ones_like(weight[:1]), factors)
            return (aggregate(weight, factors) / many.clamp(min=1e-12)).flatten(1), None
        if self._choice in {"largest", "maximum"}:
            index = chosen(weight.abs() if self._choice == "largest" else weight, factors)
            return weight.flatten(1).gather(1, index.clamp(min=0)).masked_fill(index < 0, 0), None
        draws = torch.rand(1, *weight.shape[1:], generator=self._generator)
        index = chosen(draws, factors)[0].to(weight.device)
        return weight.flatten(1)[:, index], index  # each new entry stands for some old one where they get fewer
