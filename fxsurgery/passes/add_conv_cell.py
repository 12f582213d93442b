"""Insert ECToNAS's cell after a feature map: convolution 3 x 3, pool 2 x 2, batch norm, ReLU.

    x  ->  relu(norm(pool(conv(x))))

Each part starts as close to the identity as possible. The convolution (padding 1, no bias, since the norm has one)
passes channel j through its center tap. The norm undoes the statistics of its input, measured on example inputs in
train mode (`analysis.identity_norm`). ReLU is the identity on maps that are never negative. The pool halves the map;
dense layers after it sum their weights over each window, as in `add-pool` (`analysis.spatial_maps`). With a pool the
effect is lossy; with `kind="none"`, after a node whose values are never negative, and without a change of channels, it
is exact.

A different number of channels: the first ones are those of x. Additional channels are random filters, which consumers
read with weights of 0 at first (a gradient reaches these weights at the first step, and the filters at the second).
With fewer channels, the last ones of x are lost. Consumers can be dense layers and convolutions.

In a program without a convolution, images are the maps: the cell is inserted before the first flattening, which turns a
feed-forward network into a CNN.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from typing_extensions import override

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.identity_norm import undoing, without_statistics
from fxsurgery.analysis.naming import node_named, stem_of
from fxsurgery.analysis.nonnegativity import is_non_negative
from fxsurgery.analysis.pool_windows import (
    block_ends,
    feature_maps,
    halved,
    readable,
    spread,
    too_small,
)  # fmt: skip
from fxsurgery.analysis.spatial_maps import Map, SpatialAxis
from fxsurgery.calls import checked_construction
from fxsurgery.edit import Editor
from fxsurgery.errors import SpecError
from fxsurgery.match import Match, Refusal
from fxsurgery.ops.layers import AVERAGE_POOL, CONVOLUTION, MAX_POOL
from fxsurgery.option_types import MOST_UNITS, Range, Seed
from fxsurgery.program import Program
from fxsurgery.rewriting.changes import Change, Consequences
from fxsurgery.rewriting.downstream import can_follow, follow
from fxsurgery.surgery import Effect, Rewrite

MOST = 3
"""Default number of places for candidates."""


@checked_construction
@dataclass(frozen=True)
class AddConvCell(Rewrite):
    """Insert a cell of convolution, pool, batch norm and ReLU after a feature map, close to the identity."""

    name: ClassVar[str] = "add-conv-cell"

    after: str
    """Name of the node that gives the map: (batch, channels, *positions)."""
    channels: Annotated[int | None, Range(most=MOST_UNITS)] = None
    """Number of output channels of the cell; `None` for those of the map."""
    kind: Literal["average", "max", "none"] = "average"
    """Kind of the pool; `none` for a cell without one."""
    ceil: bool = False
    """Whether an odd last row and column gets a window of its own."""
    seed: Seed = 0
    """Seed of the random filters."""

    @classmethod
    @override
    def candidates(cls, program: Program, most: int = MOST) -> Iterator[Self]:
        """Yield both kinds of pool after the blocks of convolutions, at a few evenly spread places.

        Args:
            program: the program to change.
            most: maximum number of places.
        """
        maps, found = feature_maps(program), list[fx.Node]()
        for node in spread(list(block_ends(program)), 2 * most):
            shape = maps[node.name]
            move = cls(node.name, ceil=_is_odd(shape))
            if readable(program, node) is None and too_small(program, node) is None and move._could(program, node):
                found.append(node)
        places = spread(found, most)
        for node in places:
            yield cls(node.name, None, "average", _is_odd(maps[node.name]))
            yield cls(node.name, None, "max", _is_odd(maps[node.name]))
        if places:
            yield cls(places[-1].name, None, "none")

    @override
    def rewrite(self, edit: Editor) -> Effect:
        program, node = edit.program, self._node(edit.program)
        if refusal := readable(program, node):
            edit.decline(refusal)
            return Effect.LOSSY
        planned = self._planned(program, node)
        if isinstance(planned, Refusal):
            edit.decline(planned)
            return Effect.LOSSY
        cell, found = planned
        before, last = next(n for n in program.nodes if n in node.users), node
        readers = list(node.users)
        stem = stem_of(str(node.target) if node.op == "call_module" else node.name)
        for part, module in cell.items():
            last = edit.insert_call(edit.new_path(f"{stem}_cell_{part}"), module, (last,), before=before)
        edit.replace_uses(node, last, readers)
        found.apply(edit)
        keeps = self.kind == "none" and self.channels in {None, feature_maps(program)[node.name][1]}
        return Effect.EXACT if keeps and is_non_negative(program, node) else Effect.LOSSY

    def _could(self, program: Program, node: fx.Node) -> bool:
        """Return True if a cell with the same number of channels can follow, judging by shapes alone."""

        def change(value: Tensor) -> Change:
            result = AVERAGE_POOL[value.dim()](2, ceil_mode=self.ceil)(value)
            return Change(node, result, self._map(value, result))

        samples, _, *left = feature_maps(program)[node.name]
        values = samples * math.prod(math.ceil(n / 2) if self.ceil else n // 2 for n in left)
        return values > 1 and without_statistics(program) is None and can_follow(program, node, change)

    def _node(self, program: Program) -> fx.Node:
        if self.kind == "none" and self.ceil:
            raise SpecError("ceil is an option of the pool, and kind='none' has none; leave it out, or choose a pool")
        if self.channels is not None and self.channels < 1:
            raise SpecError(f"channels={self.channels}: it must be at least 1, or None for those of the map")
        return node_named(program, self.after, lambda: feature_maps(program), "feature maps")

    def _planned(self, program: Program, node: fx.Node) -> Match[tuple[dict[str, nn.Module], Consequences]]:
        """Return the modules of the cell by name with the changes downstream, or a refusal."""
        if self.kind != "none" and (refusal := too_small(program, node)):
            return refusal
        value = read_values(program, {node.name})[node.name]
        if refusal := without_statistics(program):
            return Refusal(str(node), refusal.reason)
        live = read_values(program, {node.name}, training=True)[node.name]
        with torch.no_grad():
            cell = self._cell(program, live)
            if cell is None:
                return Refusal(
                    str(node), "no statistics for a batch norm: the example inputs give one value per channel"
                )
            result = nn.Sequential(*cell.values())(value)
        found = follow(program, Change(node, result, self._map(value, result)))
        return found if isinstance(found, Refusal) else (cell, found)

    def _map(self, value: Tensor, result: Tensor) -> Map:
        old, new = tuple(value.shape[1:]), tuple(result.shape[1:])
        if self.kind == "none":
            axes = ((SpatialAxis(), SpatialAxis()),) * (value.dim() - 2)
            own = Map(old, new, (None,) * len(old), (None, *axes))
        else:
            own = halved(value.shape, result.shape)
        factor = None if old[0] == new[0] else torch.eye(new[0], old[0], dtype=torch.float64)
        return Map(old, new, (factor, *own.factors[1:]), own.axes)

    def _cell(self, program: Program, live: Tensor) -> dict[str, nn.Module] | None:
        """Return the cell in eval mode, given the values of the map in train mode; `None` without statistics."""
        rank, inner = live.dim(), live.shape[1]
        outer = inner if self.channels is None else self.channels
        parameters = list(program.graph_module.parameters())
        trains = any(p.requires_grad for p in parameters) or not parameters
        conv = CONVOLUTION[rank](inner, outer, 3, padding=1, bias=False, device="meta")  # its weight is replaced
        conv.weight = nn.Parameter(_taps(conv, self.seed).to(live))
        cell: dict[str, nn.Module] = {"conv": conv}
        if self.kind != "none":
            cell["pool"] = (AVERAGE_POOL if self.kind == "average" else MAX_POOL)[rank](2, ceil_mode=self.ceil)
        if (norm := undoing(nn.Sequential(*cell.values())(live))) is None:
            return None
        cell |= {"norm": norm, "act": nn.ReLU()}
        return {part: module.requires_grad_(trains).eval() for part, module in cell.items()}


def _is_odd(shape: tuple[int, ...]) -> bool:
    return any(size % 2 for size in shape[2:])


def _taps(conv: _ConvNd, seed: int) -> Tensor:
    """Return a kernel (out, in, 3, ...) that passes channel j to output j; further outputs are random (He et al.)."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(conv.weight.shape, generator=generator, dtype=torch.float64)
    weight *= (2 / weight[0].numel()) ** 0.5
    kept = min(conv.weight.shape[:2])
    weight[:kept] = 0.0
    center = weight.flatten(2)[:, :, 3 ** len(conv.kernel_size) // 2]
    center[range(kept), range(kept)] = 1.0
    return weight
