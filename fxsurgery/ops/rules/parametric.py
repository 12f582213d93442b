"""Convolutions and norms: where channels end and new ones begin.

A grouped convolution can lose whole groups, or the same inner channels of every group. Whole groups when
there are at least as many groups as channels in one (depthwise always), inner channels otherwise.
"""

from collections.abc import Sequence

import numpy as np

from fxsurgery.ops.labels import Labels, along, varying
from fxsurgery.ops.propagation_state import Contraction, PropagationState
from fxsurgery.ops.rules.call import AtenCall
from fxsurgery.ops.rules.pointwise import join
from fxsurgery.ops.union_find import Ids


def convolution(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Input channels are contracted with the weight's, output channels are the weight's own."""
    source, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    if any(varying(plane)[-1] > 1 for plane in weight.planes):
        for dim in range(2, len(weight.shape)):
            state.freeze(state.vector(weight, dim))
    entering = state.vector(source, 1)
    passing = [*_along_space(state, call, source), *(p for p in source.planes if varying(p) == [0])]
    own_in, own_out = (0, 1) if transposed else (1, 0)
    w_in, w_out = state.vector(weight, own_in), state.vector(weight, own_out)
    if groups == 1:
        state.union(entering, w_in)
        leaving = w_out
        state.scales_with(w_in, w_out)
    else:
        leaving = _grouped(state, entering, (w_in, w_out), groups, transposed=transposed)
    state.scales_with(*state.work_dims, *(p.ravel() for p in passing))
    if groups == 1 or len(entering) > groups:
        state.contractions.append(Contraction(state.node, 1, entering))
        state.produced.append((state.node, leaving))
    if isinstance(bias, Labels):
        state.union(state.vector(bias, 0), leaving)
    planes = [*state.labeled(call.shape, {1: leaving}).planes, *passing]
    return [state.without_overlap(Labels(call.shape, planes))]


def _grouped(state: PropagationState, entering: Ids, weights: tuple[Ids, Ids], groups: int, *, transposed: bool) -> Ids:
    w_in, w_out = weights
    channels = entering.reshape(groups, -1)
    width = channels.shape[1]
    inside, leaving = (w_in.reshape(groups, -1), w_out) if transposed else (w_in, w_out.reshape(groups, -1))
    per_group = len(w_out) if transposed else leaving.shape[1]
    if width == 1 or groups >= max(width, per_group):
        state.group_width[state.node] = width
        state.union(channels, channels[:, :1])
        state.union(inside if transposed else leaving, channels[:, :1])
        state.freeze(leaving if transposed else inside)
        state.scales_with(entering)
        return np.repeat(channels[:, 0], per_group) if transposed else w_out
    if transposed:
        state.union(channels, channels[:1])
        state.union(inside, channels[:1])
        state.scales_with(entering, w_out)
        return np.tile(w_out, groups)
    state.union(channels, inside)
    state.union(leaving, leaving[:1])
    state.scales_with(w_in, w_out)
    return w_out


def _along_space(state: PropagationState, call: AtenCall, source: Labels) -> list[Ids]:
    """Labels along convolved dims: neighbors change with each removal, so they pass only where the size stays."""
    passing = list[Ids]()
    for plane in source.planes:
        if (dims := varying(plane)) == [1] or dims == [0]:
            continue
        if call.shape[dims[0]] == source.shape[dims[0]]:
            state.mark_inexact(plane)
            state.mark_ungateable(plane)
            passing.append(plane)
        else:
            state.freeze(plane)
    return passing


def channel_norm(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Batch norm: every statistic and affine vector belongs to the channel."""
    source: Labels = call.args[0]
    channels = state.vector(source, 1)
    vectors = call.tensors()[1:]
    own = [state.vector(v, 0) for v in vectors if v.shape == (source.shape[1],)]
    if own:
        state.union(np.stack(own), channels)
    for vector in vectors:
        if vector.shape != (source.shape[1],):
            state.freeze_all(vector)
    state.refresh(source)
    if call.argument("training", call.argument("train", default=False)):
        for plane in source.planes:
            if varying(plane) != [1]:
                state.mark_inexact(plane)
    first = Labels(call.shape, list(source.planes))
    return [first, *(Labels(tuple(r.shape)) for r in call.results[1:])]


def group_norm(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Whole groups may go; within a single group the statistics change with every channel."""
    source, weight, bias = call.args[:3]
    groups = int(call.argument("group", call.argument("num_groups", 1)))
    channels = state.vector(source, 1)
    for affine in (weight, bias):
        if isinstance(affine, Labels):
            state.union(state.vector(affine, 0), channels)
    if groups == 1:
        state.mark_inexact(channels)
    else:
        grouped = channels.reshape(groups, -1)
        state.union(grouped, grouped[:, :1])
        state.group_width[state.node] = grouped.shape[1]
    state.refresh(source)
    return [Labels(call.shape, list(source.planes)), *(Labels(tuple(r.shape)) for r in call.results[1:])]


def layer_norm(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Statistics run over the trailing dims: removing there is inexact.

    Where labels vary along those dims and others, as over (heads, width), a later consumer decides first.
    """
    source: Labels = call.args[0]
    first = len(source.shape) - len(call.args[1])
    if any(len(varying(p)) > 1 and varying(p)[0] < first for p in source.planes):
        state.later(lambda: _normalized(state, call))
    else:
        _normalized(state, call)
    return [Labels(call.shape, list(source.planes)), *(Labels(tuple(r.shape)) for r in call.results[1:])]


def _normalized(state: PropagationState, call: AtenCall) -> None:
    source: Labels = call.args[0]
    shape: Sequence[int] = call.args[1]
    ndim = len(source.shape)
    state.resolve(source)
    for offset, dim in enumerate(range(ndim - len(shape), ndim)):
        ids = state.vector(source, dim)
        if ids.any():
            state.mark_inexact(ids)
        for affine in call.tensors()[1:]:
            state.union(state.vector(affine, offset), ids)
    state.refresh(source)


def weight_norm(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """`g * v / |v|` with the norm over all dims but one: `resize` makes up for what the norm loses."""
    direction, magnitude = call.args[:2]
    dim = int(call.argument("dim", 0)) % len(direction.shape)
    state.union(state.vector(magnitude, dim), state.vector(direction, dim))
    state.refresh(direction)
    return [Labels(call.shape, list(direction.planes)), *(Labels(tuple(r.shape)) for r in call.results[1:])]


def prelu(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """One slope for all, or one a channel."""
    source, weight = call.args[:2]
    if len(weight.shape) == 1 and weight.shape[0] > 1:
        slopes = along(state.vector(weight, 0), 1, len(source.shape))
        return [Labels(call.shape, join(state, (call.shape, source.planes), (slopes.shape, [slopes])))]
    return [Labels(call.shape, list(source.planes))]
