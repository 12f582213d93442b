"""Match the entries of a value before and after a change, by sending index tensors through the graph."""

# ruff: noqa: ANN401 -- values of the user's graph

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from fxsurgery.analysis.pool_windows import read_stencil
from fxsurgery.analysis.spatial_maps import Layout, Map, nearest
from fxsurgery.ops.joining import PAD
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.rewriting.changes import CallChange, ChangeState, holds_tensors


def rearranged_layout(state: ChangeState, node: fx.Node, call: CallChange) -> Layout | None:
    """Return the layout of a node that only rearranges entries, by rearranging their indices likewise."""
    operands = [i for i in node.all_input_nodes if holds_tensors(state.env[i])]
    maps, old, new = tuple[Map, ...](), dict[fx.Node, Any](), dict[fx.Node, Any]()
    for operand in operands:
        if (layout := _layout(state, operand)) is None:
            return None
        before = (sum(math.prod(m.old) for m in maps), sum(math.prod(m.new) for m in maps))
        old[operand] = pytree.tree_map(partial(torch.add, other=before[0]), layout.old)
        new[operand] = pytree.tree_map(partial(torch.add, other=before[1]), layout.new)
        maps += layout.maps
    if not operands:
        return None
    first = state.run(node, CallChange(node.args, node.kwargs), lambda n: old[n] if n in old else state.env[n])
    return Layout(maps, first, state.run(node, call, lambda n: new[n] if n in new else state.now(n)))


def _layout(state: ChangeState, node: fx.Node) -> Layout | None:
    if node in state.layouts or node in state.values:
        return state.layouts.get(node)
    value = state.env[node]
    if not isinstance(value, Tensor) or not value.dim():
        return None
    shape = tuple(value.shape[1:])
    return Layout.of(Map(shape, shape, (None,) * len(shape), (None,) * len(shape)), len(value))


def derived_layout(state: ChangeState, node: fx.Node, old: Any, new: Any) -> Layout | None:
    """Return the layout of a new value: that of an input of equal shape, or a new map."""
    reached = [i for i in node.all_input_nodes if i in state.layouts and i in state.values]
    sources = [i for i in reached if isinstance(state.env[i], Tensor)]
    if not sources or not isinstance(old, Tensor):
        return None
    for source in sources:
        if (state.env[source].shape, state.values[source].shape) == (old.shape, new.shape):
            return state.layouts[source]
    if sources[0] is not node.args[0] or state.env[sources[0]].dim() != old.dim():
        return None
    return _resampled(state, node, sources[0], old, new)


def _resampled(state: ChangeState, node: fx.Node, source: fx.Node, old: Tensor, new: Tensor) -> Layout | None:
    """Return the layout of a windowed or resampling operation."""
    stencil = read_stencil(state.program, node, lambda n: state.env[n].shape)
    if stencil is None and not _resamples(state.program.operator(node)):
        return None
    before, now, layout = state.env[source], state.values[source], state.layouts[source]
    channels = None
    if old.shape[1] != new.shape[1]:
        kept = (old.shape[1], new.shape[1]) == (before.shape[1], now.shape[1])
        if not kept or (channels := layout.channels()) is None:
            return None  # the node adds or drops channels, as a channel pad does
    factors, axes = list[Tensor | None]([channels]), list[Any]([None])
    for dim in range(2, old.dim()):
        if (found := layout.axis(dim)) is None or (pair := found[0].axes[found[1]]) is None:
            return None
        if stencil is None:
            to_old, to_new = old.shape[dim], new.shape[dim]
            pair = (pair[0].stretched(before.shape[dim], to_old), pair[1].stretched(now.shape[dim], to_new))
        else:
            pair = (stencil.through(dim - 2, pair[0]), stencil.through(dim - 2, pair[1]))
        is_point = stencil is not None and stencil.is_point
        factors.append(found[0].factors[found[1]] if is_point else nearest(*pair, old.shape[dim], new.shape[dim]))
        axes.append(pair)
    return Layout.of(Map(tuple(old.shape[1:]), tuple(new.shape[1:]), tuple(factors), tuple(axes)), len(old))


def _resamples(operator: Operator | None) -> bool:
    """Whether an operator gives another number of positions, spread evenly over the same area."""
    if operator is None:
        return False
    is_transposed = operator.window is not None and operator.window.transposed
    return operator.kind in {Kind.POOLING, Kind.RESAMPLING} or operator is PAD or is_transposed
