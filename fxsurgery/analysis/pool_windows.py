"""Windows of pools and convolutions, and the values of a program that are feature maps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.node_values import node_values
from fxsurgery.analysis.pointwise import only_reader, pointwise
from fxsurgery.analysis.spatial_maps import Map, SpatialAxis, nearest
from fxsurgery.match import Refusal
from fxsurgery.ops import registry
from fxsurgery.ops.arithmetic import ADD
from fxsurgery.ops.contractions import LINEAR
from fxsurgery.ops.joining import CAT
from fxsurgery.ops.layers import AVERAGE_POOL
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.pointwise import PRELU
from fxsurgery.program import Program

LOCAL = 3
"""A window larger than this that covers the whole map counts as global pooling."""


@dataclass(frozen=True)
class Pool:
    """A pool with windows, one entry per dim. Its node may call a module or a function."""

    kind: Literal["average", "max"]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    counts_padding: bool
    divisor: int | None
    gives_indices: bool

    def shares(self, dim: int, size: int, windows: int) -> Tensor:
        """Return the weight of each position in each window along one dim, (windows, size); equal in a max pool."""
        found = torch.zeros(windows, size, dtype=torch.float64)
        kernel, padding = self.kernel[dim], self.padding[dim]
        for window in range(windows):
            start = window * self.stride[dim] - padding
            seen = [p for p in range(start, start + self.dilation[dim] * kernel, self.dilation[dim]) if 0 <= p < size]
            within = min(start + kernel, size + padding) - start if self.counts_padding else len(seen)
            found[window, seen] = 1 / within if self.divisor is None else 1.0
        return found / self.divisor if self.divisor is not None and dim == 0 else found


def read_pool(program: Program, node: fx.Node) -> Pool | None:
    """Return the pool with windows that `node` computes, else `None`. Adaptive and global pools have no windows."""
    operator = program.operator(node)
    if operator is None or (window := operator.window) is None or not operator.is_pool or window.kernel is None:
        return None
    module = program.module(node) if node.op == "call_module" else None
    given = partial(registry.argument, node, module)
    stated = [given(window.kernel), given(window.stride), given(window.padding), given(window.dilation)]
    if any(isinstance(number, fx.Node) for value in stated for number in _listed(value)):
        return None
    rank, kernel = window.rank, _each(stated[0], window.rank)
    is_average = window.reduces == "average"
    return Pool(
        kind="average" if is_average else "max",
        kernel=kernel,
        stride=kernel if stated[1] is None or not _listed(stated[1]) else _each(stated[1], rank),
        padding=_each(stated[2], rank),
        dilation=(1,) * rank if stated[3] is None else _each(stated[3], rank),
        counts_padding=bool(given(window.counts_padding)),
        divisor=given(window.divisor),
        gives_indices=bool(given(window.returns_indices)),
    )


def _listed(value: Any) -> Sequence[Any]:  # noqa: ANN401
    return value if isinstance(value, (list, tuple)) else [value]


def _each(value: Any, rank: int) -> tuple[int, ...]:  # noqa: ANN401
    listed = tuple(_listed(value))
    return tuple(map(int, listed * rank if len(listed) == 1 else listed))


@dataclass(frozen=True)
class Stencil:
    """The windows of a convolution or pool, one entry per dim."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[float, ...]
    dilation: tuple[int, ...]

    @property
    def is_point(self) -> bool:
        """Return True if each window is one position, and each position has a window."""
        return set(self.kernel) == {1} == set(self.stride) and not any(self.padding)

    def through(self, dim: int, axis: SpatialAxis) -> SpatialAxis:
        """Return the centers of the windows along `dim`."""
        return axis.through(self.kernel[dim], self.stride[dim], self.padding[dim], self.dilation[dim])


def read_stencil(program: Program, node: fx.Node, sizes: Callable[[fx.Node], Sequence[int]]) -> Stencil | None:
    """Return the windows of the convolution or pool that `node` computes; `None` if it is neither.

    Args:
        program: the program of the node.
        node: any node.
        sizes: function from a node to the shape of its value; the weight of a functional call has the kernel size.
    """
    if (pool := read_pool(program, node)) is not None:
        return Stencil(pool.kernel, pool.stride, pool.padding, pool.dilation)
    operator = program.operator(node)
    if operator is None or not operator.is_convolution or operator.window is None or operator.window.transposed:
        return None
    module: Any = program.module(node) if node.op == "call_module" else None
    window, given = operator.window, partial(registry.argument, node, module)
    weight = None if operator.weight is None or module is not None else given(operator.weight.argument)
    if module is None and not isinstance(weight, fx.Node):
        return None
    kernel = tuple(module.kernel_size) if weight is None else tuple(sizes(weight))[2:]
    return _stencil(kernel, given(window.stride), given(window.padding), given(window.dilation))


def _stencil(kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any) -> Stencil:  # noqa: ANN401
    rank = len(kernel)
    dilation = _each(dilation, rank)
    around: tuple[float, ...]
    if padding == "same":
        around = tuple((k - 1) * d / 2 for k, d in zip(kernel, dilation, strict=True))
    else:
        around = _each(0 if padding == "valid" else padding, rank)
    return Stencil(kernel, _each(stride, rank), around, dilation)


@cached
def feature_maps(program: Program) -> dict[str, tuple[int, ...]]:
    """Return the nodes whose values are (batch, channels, *positions), in execution order, with their shapes.

    These are images, the outputs of convolutions and pools, and of nodes that keep their shape: norms, activations,
    sums.
    """
    values, found = node_values(program).by_name, dict[str, tuple[int, ...]]()
    for node in program.nodes:
        value = values.get(node.name)
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() not in AVERAGE_POOL:
            continue
        windowed = read_stencil(program, node, lambda n: values[n.name].shape)
        sources = [found[i.name] for i in node.all_input_nodes if i.name in found]
        is_image = node.op == "placeholder" and value.dim() > 3
        operator = program.operator(node)
        keeps = tuple(value.shape) in sources and not (operator is not None and _may_permute(operator))
        joined = operator is CAT and any(s[2:] == value.shape[2:] for s in sources)
        if windowed is not None or is_image or keeps or joined:
            found[node.name] = tuple(value.shape)
    return found


def _may_permute(operator: Operator) -> bool:
    """Return True if the result may not be a feature map although it has the shape of the input map."""
    is_product = operator.kind is Kind.CONTRACTION and operator.window is None and operator is not LINEAR
    return operator.regroups or is_product


def block_ends(program: Program) -> Iterator[fx.Node]:
    """Yield the ends of blocks at which a single map continues.

    An end is the last norm or activation after a convolution, sum or concatenation. A pool before the activation is
    part of the block, as in the cells of ECToNAS. If there is no convolution, images count too.
    """
    maps = feature_maps(program)
    starts = [node for node in program.nodes if node.name in maps and is_convolution(program, node)]
    joins = [node for node in program.nodes if node.name in maps and program.operator(node) in {ADD, CAT}]
    starts = starts or [node for node in program.nodes if node.name in maps and node.op == "placeholder"]
    ends = {_end(program, start) for start in (*starts, *joins)}
    yield from (node for node in _alone(program) if node in ends)


def _end(program: Program, start: fx.Node) -> fx.Node:
    """Return the last norm or activation of the block that starts at a node; the node itself if it has none."""
    maps, node, end, is_active = feature_maps(program), start, start, False
    while (reader := only_reader(node)) is not None and reader.name in maps:
        if _keeps_place(program, reader):
            end, fact = reader, pointwise(program, reader)
            is_active |= fact is not None and not fact.is_identity
        elif is_active or read_pool(program, reader) is None:
            break
        node = reader
    return end


def _alone(program: Program) -> Iterator[fx.Node]:
    """Yield the maps at which no other map is still to be read."""
    maps, order = feature_maps(program), {node: place for place, node in enumerate(program.nodes)}
    waiting = -1
    for node in program.nodes:
        if node.name not in maps:
            continue
        if waiting <= order[node]:
            yield node
        waiting = max(waiting, *(order[reader] for reader in node.users), 0)


def is_convolution(program: Program, node: fx.Node) -> bool:
    """Return True if `node` calls a convolution, as a module or as a function."""
    operator = program.operator(node)
    return operator is not None and operator.is_convolution


def _keeps_place(program: Program, node: fx.Node) -> bool:
    operator = program.operator(node)
    is_norm = operator is not None and operator.statistics in {"channel", "group"}
    return is_norm or operator is PRELU or pointwise(program, node) is not None


def spread(found: Sequence[fx.Node], most: int) -> list[fx.Node]:
    """Return at most `most` of the nodes, evenly spaced, including the last one."""
    return [found[len(found) * (i + 1) // min(most, len(found)) - 1] for i in range(min(most, len(found)))]


def halved(old: Sequence[int], new: Sequence[int]) -> Map:
    """Return a map of shape `old`, batch first, before and after a 2 x 2 pool of stride 2 that gives shape `new`."""
    axes, factors = list[tuple[SpatialAxis, SpatialAxis] | None]([None]), list[Tensor | None]([None])
    for before, now in zip(old[2:], new[2:], strict=True):
        pair = (SpatialAxis(), SpatialAxis().through(2, 2, 0, 1))
        axes.append(pair)
        factors.append(nearest(*pair, before, now))
    return Map(tuple(old[1:]), tuple(new[1:]), tuple(factors), tuple(axes))


def too_small(program: Program, node: fx.Node) -> Refusal | None:
    """Return why the feature map of `node` cannot be pooled; `None` if it can."""
    positions = feature_maps(program)[node.name][2:]
    if min(positions) >= 2:
        return None
    return Refusal(node.name, f"nothing is left to pool: the map has {' x '.join(map(str, positions))} positions")


def readable(program: Program, node: fx.Node) -> Refusal | None:
    """Return why nothing can be inserted between a map and its readers; `None` if something can."""
    if node.name not in feature_maps(program):
        return Refusal(node.name, "it gives no feature map: (batch, channels, *positions)")
    return None if node.users else Refusal(node.name, "nothing reads it")
