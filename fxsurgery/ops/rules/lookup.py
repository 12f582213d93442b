"""Operations that pick entries by number: embeddings, indexing, sorting.

Along a dim that is picked from nothing may go, since nobody can tell which entries are asked for.
"""

from collections.abc import Sequence

import numpy as np
import torch

from fxsurgery.ops.labels import Labels, along, varying
from fxsurgery.ops.propagation_state import PropagationState
from fxsurgery.ops.rules.call import AtenCall, dims_of
from fxsurgery.ops.union_find import Ids


def embedding(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Rows are picked; the width is the weight's."""
    weight: Labels = call.args[0]
    state.freeze(state.vector(weight, 0))
    for other in call.tensors()[1:]:
        state.freeze_all(other)
    width = state.vector(weight, 1)
    state.produced.append((state.node, width))
    return [state.labeled(call.shape, {len(call.shape) - 1: width})]


def bag(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Sums or means of picked rows."""
    first, *rest = call.results
    [labels] = embedding(state, AtenCall(call.op, call.args, call.kwargs, (first,)))
    return [labels, *(Labels(tuple(r.shape)) for r in rest)]


def indexing(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """`x[..., indices, ...]`: the other dims pass, in the order that indexing gives them."""
    source: Labels = call.args[0]
    given: Sequence[Labels | None] = call.args[1]
    indices = [*given, *[None] * (len(source.shape) - len(given))]
    for index in indices:
        if index is not None:
            state.freeze_all(index)
    picked = [d for d, index in enumerate(indices) if index is not None]
    planes = list[Ids]()
    for plane in source.planes:
        if set(varying(plane)) & set(picked):
            state.freeze(plane)
        else:
            planes.append(_indexed(plane, indices))
    return [state.without_overlap(Labels(call.shape, planes))]


def _indexed(plane: Ids, indices: Sequence[Labels | None]) -> Ids:
    """The plane after indexing along dims on which it does not vary."""
    zeros = [None if i is None else torch.zeros((1,) * len(i.shape), dtype=torch.long) for i in indices]
    moved: Ids = torch.ops.aten.index.Tensor(torch.from_numpy(np.ascontiguousarray(plane)), zeros).numpy()
    return moved


def index_select(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """One dim is picked from, by a vector."""
    source: Labels = call.args[0]
    _freeze_along(state, source, [int(call.args[1]) % len(source.shape)])
    return [Labels(call.shape, list(source.planes))]


def gathering(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Entries of one dim are picked for each place: `gather`, `sort` and `topk` along it.

    Indices that are handed in have sizes of their own, which do not shrink.
    """
    source: Labels = call.args[0]
    ndim = len(source.shape)
    dim = int(call.argument("dim", -1)) % ndim if ndim else 0
    _freeze_along(state, source, [dim])
    for other in call.tensors()[1:]:
        state.freeze_all(other)
        _freeze_along(state, source, [d for d, size in enumerate(other.shape) if size > 1])
    if len(call.shape) < ndim:  # one entry of the dim is picked, and the dim goes
        return [Labels(tuple(r.shape), [p.squeeze(dim) for p in source.planes]) for r in call.results]
    kept = [p for p in source.planes if all(call.shape[d] == source.shape[d] for d in varying(p))]
    for plane in source.planes:
        if not any(plane is k for k in kept):
            state.freeze(plane)
    return [Labels(tuple(r.shape), list(kept)) for r in call.results]


def transform(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Fourier transforms mix what lies along their dims."""
    source: Labels = call.args[0]
    _freeze_along(state, source, dims_of(call.argument("dim"), len(source.shape)))
    return [Labels(call.shape, list(source.planes))]


def sampling(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """`grid_sample`: channels pass, places are picked."""
    source, grid = call.args[:2]
    state.freeze_all(grid)
    channels = state.vector(source, 1)
    for plane in source.planes:
        if varying(plane) != [1]:
            state.freeze(plane)
    return [Labels(call.shape, [along(channels, 1, len(call.shape))] if channels.any() else [])]


def _freeze_along(state: PropagationState, labels: Labels, dims: Sequence[int]) -> None:
    for plane in labels.planes:
        if set(varying(plane)) & set(dims):
            state.freeze(plane)
    state.refresh(labels)
