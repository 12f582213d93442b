"""Cells: a layer with the pool, norm, activation and dropout after it, and the affine map of a cell.

    conv -> pool -> batch norm -> activation -> dropout      in any order, each the only reader of the one before

Without activation, dropout and pool, and on maps that are constant over the layer's window, a cell is

    y = A x + a        A[o, c] = s[o] sum_k W[o, c, k],  a[o] = s[o] (b[o] - mean[o]) + beta[o],  s = gamma / sigma

with the norm in eval mode; a norm over channels or positions counts by its own gamma and beta alone.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd

from fxsurgery.analysis.blocks import shape_of
from fxsurgery.analysis.pointwise import calls_of, pointwise
from fxsurgery.analysis.pool_windows import Pool, read_pool, read_stencil
from fxsurgery.analysis.spatial_maps import Map, SpatialAxis, nearest
from fxsurgery.ops.movement import FLATTEN
from fxsurgery.ops.pointwise import PRELU
from fxsurgery.ops.reductions import MEAN
from fxsurgery.program import Program

Layer = nn.Linear | _ConvNd


@dataclass(frozen=True, eq=False)
class Cell:
    """A layer with the nodes that belong to it."""

    node: fx.Node
    layer: Layer
    tail: tuple[fx.Node, ...]
    """The nodes after the layer, each the only reader of the previous one."""

    @property
    def source(self) -> fx.Node:
        """The node that the layer reads."""
        return self.node.all_input_nodes[0]

    @property
    def end(self) -> fx.Node:
        """The node that the next layers read."""
        return (self.node, *self.tail)[-1]


def read_cell(program: Program, node: fx.Node) -> Cell | None:
    """Return the cell that starts at `node`; `None` if it calls no linear layer or convolution."""
    module = program.module(node) if node.op == "call_module" else None
    if not isinstance(module, (nn.Linear, _ConvNd)) or len(node.all_input_nodes) != 1:
        return None
    if isinstance(module, _ConvNd) and module.transposed:
        return None
    tail, last = list[fx.Node](), node
    while len(last.users) == 1 and _goes_with(program, module, last, next(iter(last.users))):
        last = next(iter(last.users))
        tail.append(last)
    return Cell(node, module, tuple(tail))


def windowed_pool(program: Program, node: fx.Node) -> Pool | None:
    """Return the pool with windows that `node` computes, if its value is a single tensor."""
    pool = read_pool(program, node)
    return None if pool is None or pool.gives_indices else pool


def is_global_pool(program: Program, node: fx.Node) -> bool:
    """Return True if `node` computes the mean over all positions of each channel of a map."""
    before, after = (shape_of(program, n) for n in (node.all_input_nodes[0], node))
    if before is None or after is None or len(before) < 3 or after[:2] != before[:2] or set(after[2:]) - {1}:
        return False
    operator = program.operator(node)
    if operator is not None and operator.window is not None and operator.window.is_adaptive:
        return operator.window.reduces == "average"
    dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    if operator is not MEAN or not isinstance(dims, (int, tuple, list)):
        return False
    listed = (dims,) if isinstance(dims, int) else dims
    return {d % len(before) for d in listed if isinstance(d, int)} == set(range(2, len(before)))


def is_dropout(program: Program, node: fx.Node) -> bool:
    """Return True if `node` drops entries in train mode."""
    operator = program.operator(node)
    if operator is None or operator.role != "identity" or operator.draws is None:
        return False
    return node.op != "call_module" or getattr(program.module(node), "p", 1.0) > 0


def affine(program: Program, cell: Cell) -> tuple[Tensor, Tensor]:
    """Return A and a of the cell, in float64: (out, in) and (out,)."""
    layer = cell.layer
    weight = layer.weight.detach().double()
    rows = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
    groups = layer.groups if isinstance(layer, _ConvNd) else 1
    matrix = torch.block_diag(*rows.chunk(groups)) if groups > 1 else rows  # type: ignore[no-untyped-call]
    offset = matrix.new_zeros(len(matrix)) if layer.bias is None else layer.bias.detach().double()
    for node in cell.tail:
        operator = program.operator(node)
        if node.op == "call_module" and operator is not None and operator.statistics is not None:
            scale, shift = _scale_and_shift(program.module(node), offset)
            matrix, offset = matrix * scale[:, None], offset * scale + shift
    return matrix, offset


def is_matrix(program: Program, cell: Cell) -> bool:
    """Return True if the cell equals its affine map, also in train mode."""
    facts = {n: pointwise(program, n) for n in cell.tail}
    if not all(fact is not None and fact.is_identity and not is_dropout(program, n) for n, fact in facts.items()):
        return False
    stencil = read_stencil(program, cell.node, lambda n: shape_of(program, n) or ())
    return isinstance(cell.layer, nn.Linear) or (stencil is not None and stencil.is_point)


def has_offset(program: Program, cell: Cell) -> bool:
    """Return True if the cell adds a constant."""
    modules = [cell.layer, *(program.module(n) for n in cell.tail if n.op == "call_module")]
    return any(getattr(module, name, None) is not None for module in modules for name in ("bias", "running_mean"))


def passes_constants(program: Program, node: fx.Node, end: fx.Node) -> bool:
    """Return True if the layer at `node` reads `end` through operations that keep constants in their channel."""
    if read_cell(program, node) is None:
        return False
    node = node.all_input_nodes[0]
    while node is not end:
        fact = pointwise(program, node)
        is_flat = program.operator(node) is FLATTEN
        is_pool = windowed_pool(program, node) is not None or is_global_pool(program, node)
        is_identity = fact is not None and fact.is_identity
        if not (is_flat or is_pool or is_identity):
            return False
        node = node.all_input_nodes[0]
    return True


def map_past(program: Program, cell: Cell, before: tuple[int, ...], after: tuple[int, ...]) -> Map:
    """Return the map before and after the cell is removed: its output, and its source instead."""
    channel = 0 if isinstance(cell.layer, _ConvNd) else len(before) - 2
    matrix, _ = affine(program, cell)
    factors = list[Tensor | None]([None] * (len(before) - 1))
    axes = list[tuple[SpatialAxis, SpatialAxis] | None]([(SpatialAxis(), SpatialAxis())] * (len(before) - 1))
    axes[channel] = None
    if before[channel + 1] != after[channel + 1]:
        factors[channel] = matrix.T
    for node in (cell.node, *cell.tail) if isinstance(cell.layer, _ConvNd) else ():
        stencil = read_stencil(program, node, lambda n: shape_of(program, n) or ())
        if stencil is not None:
            axes = [pair and (stencil.through(dim - 1, pair[0]), pair[1]) for dim, pair in enumerate(axes)]
    for dim, pair in enumerate(axes):
        if pair is not None and before[dim + 1] != after[dim + 1]:
            factors[dim] = nearest(*pair, before[dim + 1], after[dim + 1])
    return Map(before[1:], after[1:], tuple(factors), tuple(axes))


def following_norm(program: Program, node: fx.Node) -> fx.Node | None:
    """Return the batch norm that is the only reader of `node`, over the same channels, and is called once."""
    reader = next(iter(node.users))
    norm = program.module(reader) if reader.op == "call_module" else None
    if len(node.users) > 1 or not isinstance(norm, _BatchNorm) or not norm.track_running_stats:
        return None
    shape = shape_of(program, node)
    is_channel = isinstance(program.module(node), _ConvNd) or (shape is not None and len(shape) == 2)
    return reader if is_channel and calls_of(program)[str(reader.target)] == 1 else None


def _scale_and_shift(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    def own(name: str, default: float) -> Tensor:
        found = getattr(norm, name, None)
        if not isinstance(found, Tensor) or found.shape != like.shape:
            return torch.full_like(like, default)
        return found.detach().double()

    scale, shift = own("weight", 1.0), own("bias", 0.0)
    if isinstance(norm, _BatchNorm) and norm.track_running_stats:
        scale = scale / (own("running_var", 1.0) + norm.eps).sqrt()
        shift = shift - scale * own("running_mean", 0.0)
    return scale, shift


def _goes_with(program: Program, layer: Layer, before: fx.Node, node: fx.Node) -> bool:
    """Return True if `node`, which reads only `before`, belongs to the cell of the layer."""
    if not node.args or node.args[0] is not before:
        return False
    if pointwise(program, node) is not None:
        return True
    operator = program.operator(node)
    if node.op == "call_function" and operator is not None and operator.role == "identity":
        return True  # with a train flag that is read from the model
    if isinstance(layer, _ConvNd) and windowed_pool(program, node) is not None:
        return True
    module = program.module(node) if node.op == "call_module" else None
    if isinstance(module, _NormBase):
        return isinstance(layer, _ConvNd) or len(shape_of(program, node) or ()) == 2
    has_statistics = operator is not None and operator.statistics is not None
    return module is not None and (operator is PRELU or has_statistics)
