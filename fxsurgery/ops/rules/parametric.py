"""Convolutions and norms, the operations with parameters per channel.

A grouped convolution can lose whole groups or the same inner channels of every group: whole groups if there are at
least as many groups as channels per group (always for depthwise), inner channels otherwise.
"""

from collections.abc import Sequence

import numpy as np

from fxsurgery.ops.labels import Labels, along, varying
from fxsurgery.ops.propagation_state import Contraction, PropagationState
from fxsurgery.ops.rules.call import AtenCall
from fxsurgery.ops.rules.pointwise import join
from fxsurgery.ops.union_find import Ids


def convolution(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through a convolution: input channels are contracted, output channels are those of the weight."""
    source, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    if any(varying(plane)[-1] > 1 for plane in weight.planes):
        for dim in range(2, len(weight.shape)):
            state.freeze(state.vector(weight, dim))
    inputs = state.vector(source, 1)
    passing = [*_along_space(state, call, source), *(p for p in source.planes if varying(p) == [0])]
    own_in, own_out = (0, 1) if transposed else (1, 0)
    w_in, w_out = state.vector(weight, own_in), state.vector(weight, own_out)
    if groups == 1:
        state.union(inputs, w_in)
        outputs = w_out
        state.scales_with(w_in, w_out)
    else:
        outputs = _grouped(state, inputs, (w_in, w_out), groups, transposed=transposed)
    state.scales_with(*state.work_dims, *(p.ravel() for p in passing))
    if groups == 1 or len(inputs) > groups:
        state.contractions.append(Contraction(state.node, 1, inputs))
        state.produced.append((state.node, outputs))
    if isinstance(bias, Labels):
        state.union(state.vector(bias, 0), outputs)
    planes = [*state.labeled(call.shape, {1: outputs}).planes, *passing]
    return [state.without_overlap(Labels(call.shape, planes))]


def _grouped(state: PropagationState, inputs: Ids, weights: tuple[Ids, Ids], groups: int, *, transposed: bool) -> Ids:
    w_in, w_out = weights
    channels = inputs.reshape(groups, -1)
    width = channels.shape[1]
    inside, outputs = (w_in.reshape(groups, -1), w_out) if transposed else (w_in, w_out.reshape(groups, -1))
    per_group = len(w_out) if transposed else outputs.shape[1]
    if width == 1 or groups >= max(width, per_group):
        state.group_width[state.node] = width
        state.union(channels, channels[:, :1])
        state.union(inside if transposed else outputs, channels[:, :1])
        state.freeze(outputs if transposed else inside)
        state.scales_with(inputs)
        return np.repeat(channels[:, 0], per_group) if transposed else w_out
    if transposed:
        state.union(channels, channels[:1])
        state.union(inside, channels[:1])
        state.scales_with(inputs, w_out)
        return np.tile(w_out, groups)
    state.union(channels, inside)
    state.union(outputs, outputs[:1])
    state.scales_with(w_in, w_out)
    return w_out


def _along_space(state: PropagationState, call: AtenCall, source: Labels) -> list[Ids]:
    """Return labels along convolved dims; removal changes neighbors, so they pass only if the size is unchanged."""
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
    """Propagate through batch norm: all statistics and affine vectors belong to the channels."""
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
    """Propagate through group norm: whole groups can be removed; with one group, any removal is inexact."""
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
    """Propagate through layer norm: removal along the trailing dims is inexact, since statistics run over them.

    If labels vary along those dims and others, such as (heads, width), a later consumer decides first.
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
    """Propagate through `g * v / |v|` with the norm over all dims but one; `resize` compensates for the lost norm."""
    direction, magnitude = call.args[:2]
    dim = int(call.argument("dim", 0)) % len(direction.shape)
    state.union(state.vector(magnitude, dim), state.vector(direction, dim))
    state.refresh(direction)
    return [Labels(call.shape, list(direction.planes)), *(Labels(tuple(r.shape)) for r in call.results[1:])]


def prelu(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through PReLU, with one slope for all channels or one per channel."""
    source, weight = call.args[:2]
    if len(weight.shape) == 1 and weight.shape[0] > 1:
        slopes = along(state.vector(weight, 0), 1, len(source.shape))
        return [Labels(call.shape, join(state, (call.shape, source.planes), (slopes.shape, [slopes])))]
    return [Labels(call.shape, list(source.planes))]
