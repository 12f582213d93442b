"""Convolutions, matrix products and norms: where channels end and new ones begin.

A grouped convolution can lose whole groups, or the same inner channels of every group. Whole groups when
there are at least as many groups as channels in one (depthwise always), inner channels otherwise.
"""

from collections.abc import Sequence

import numpy as np

from fxsurgery.analysis.atoms import Ids
from fxsurgery.analysis.labels import Labels, along, varying
from fxsurgery.analysis.provenance import Contraction, Provenance
from fxsurgery.analysis.rules.call import Call, Rule
from fxsurgery.analysis.rules.pointwise import join


def convolution(state: Provenance, call: Call) -> Sequence[Labels]:
    """Input channels are contracted with the weight's, output channels are the weight's own."""
    source, weight, bias = call.args[:3]
    transposed, groups = bool(call.args[6]), int(call.args[8])
    for dim in range(2, len(weight.shape)):
        state.freeze(state.vector(weight, dim))
    entering = state.vector(source, 1)
    _freeze_spatial(state, source)
    own_in, own_out = (0, 1) if transposed else (1, 0)
    w_in, w_out = state.vector(weight, own_in), state.vector(weight, own_out)
    if groups == 1:
        state.union(entering, w_in)
        leaving = w_out
        state.scales_with(w_in, w_out)
    else:
        leaving = _grouped(state, entering, (w_in, w_out), groups, transposed=transposed)
    if groups == 1 or len(entering) > groups:
        state.contractions.append(Contraction(state.node, 1, entering))
        state.produced.append((state.node, leaving))
    if isinstance(bias, Labels):
        state.union(state.vector(bias, 0), leaving)
    return [state.labelled(call.shape, {1: leaving})]


def _grouped(state: Provenance, entering: Ids, weights: tuple[Ids, Ids], groups: int, *, transposed: bool) -> Ids:
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


def _freeze_spatial(state: Provenance, source: Labels) -> None:
    for plane in source.planes:
        if varying(plane) != [1]:
            state.freeze(plane)


def product(state: Provenance, call: Call) -> Sequence[Labels]:
    """`x @ y` for matrices, with a bias for addmm: the inner dim is contracted."""
    bias, x, y = call.args[:3] if call.name == "addmm" else (None, *call.args[:2])
    inner, leaving = state.vector(x, 1), state.vector(y, 1)
    state.union(inner, state.vector(y, 0))
    return [_contracted(state, call, (x, inner), bias, leaving)]


def linear(state: Provenance, call: Call) -> Sequence[Labels]:
    """`x @ weight.T + bias` over the last dim."""
    x, weight = call.args[:2]
    bias = call.argument("bias")
    inner, leaving = state.vector(x, -1), state.vector(weight, 0)
    state.union(inner, state.vector(weight, 1))
    return [_contracted(state, call, (x, inner), bias, leaving)]


def _contracted(
    state: Provenance, call: Call, entering: tuple[Labels, Ids], bias: Labels | None, leaving: Ids
) -> Labels:
    x, inner = entering
    ndim, last = len(call.shape), len(call.shape) - 1
    state.contractions.append(Contraction(state.node, -1, inner))
    state.produced.append((state.node, leaving))
    state.refresh(x)
    passing = [p for p in x.planes if varying(p) != [last]]
    state.scales_with(inner, leaving, *(p.ravel() for p in passing))
    planes = [*passing, *state.labelled(call.shape, {last: leaving}).planes]
    if bias is not None:
        shape = (1,) * (ndim - len(bias.shape)) + bias.shape
        reshaped = [p.reshape([1] * (ndim - p.ndim) + list(p.shape)) for p in bias.planes]
        planes = join(state, (call.shape, planes), (shape, reshaped))
    return state.without_overlap(Labels(call.shape, planes))


def channel_norm(state: Provenance, call: Call) -> Sequence[Labels]:
    """Batch norm: every statistic and affine vector belongs to the channel."""
    source: Labels = call.args[0]
    channels = state.vector(source, 1)
    for vector in call.tensors()[1:]:
        if vector.shape == (source.shape[1],):
            state.union(state.vector(vector, 0), channels)
        else:
            state.freeze_all(vector)
    state.refresh(source)
    first = Labels(call.shape, list(source.planes))
    return [first, *(Labels(tuple(r.shape)) for r in call.results[1:])]


def group_norm(state: Provenance, call: Call) -> Sequence[Labels]:
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


def layer_norm(state: Provenance, call: Call) -> Sequence[Labels]:
    """Statistics run over the trailing dims: removing there is inexact."""
    source: Labels = call.args[0]
    shape: Sequence[int] = call.args[1]
    ndim = len(source.shape)
    for offset, dim in enumerate(range(ndim - len(shape), ndim)):
        ids = state.vector(source, dim)
        state.mark_inexact(ids)
        for affine in call.tensors()[1:]:
            state.union(state.vector(affine, offset), ids)
    state.refresh(source)
    return [Labels(call.shape, list(source.planes)), *(Labels(tuple(r.shape)) for r in call.results[1:])]


def prelu(state: Provenance, call: Call) -> Sequence[Labels]:
    """One slope for all, or one a channel."""
    source, weight = call.args[:2]
    if len(weight.shape) == 1 and weight.shape[0] > 1:
        slopes = along(state.vector(weight, 0), 1, len(source.shape))
        return [Labels(call.shape, join(state, (call.shape, source.planes), (slopes.shape, [slopes])))]
    return [Labels(call.shape, list(source.planes))]


BATCH_NORMS = (
    "batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
    "cudnn_batch_norm miopen_batch_norm _batch_norm_no_update"
).split()
RULES: dict[str, Rule] = {
    **dict.fromkeys(("convolution", "_convolution"), convolution),
    **dict.fromkeys(("mm", "addmm"), product),
    "linear": linear,
    **dict.fromkeys(BATCH_NORMS, channel_norm),
    **dict.fromkeys(("group_norm", "native_group_norm"), group_norm),
    **dict.fromkeys(("layer_norm", "native_layer_norm", "rms_norm"), layer_norm),
    "prelu": prelu,
}
