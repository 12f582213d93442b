"""Operations that select entries by index: embeddings, indexing, sorting.

No entry can be removed along a dim that is indexed, since the requested entries are unknown.
"""

from collections.abc import Sequence

import numpy as np
import torch

from fxsurgery.ops.labels import Labels, along, varying
from fxsurgery.ops.propagation_state import PropagationState
from fxsurgery.ops.rules.call import AtenCall, dims_of
from fxsurgery.ops.union_find import Ids


def embedding(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through an embedding: rows are frozen, the width is that of the weight."""
    weight: Labels = call.args[0]
    state.freeze(state.vector(weight, 0))
    for other in call.tensors()[1:]:
        state.freeze_all(other)
    width = state.vector(weight, 1)
    state.produced.append((state.node, width))
    return [state.labeled(call.shape, {len(call.shape) - 1: width})]


def bag(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through sums or means of embedding rows."""
    first, *rest = call.results
    [labels] = embedding(state, AtenCall(call.op, call.args, call.kwargs, (first,)))
    return [labels, *(Labels(tuple(r.shape)) for r in rest)]


def indexing(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `x[..., indices, ...]`: other dims keep their labels, in the order that indexing gives them."""
    source: Labels = call.args[0]
    index_arguments: Sequence[Labels | None] = call.args[1]
    indices = [*index_arguments, *[None] * (len(source.shape) - len(index_arguments))]
    for index in indices:
        if index is not None:
            state.freeze_all(index)
    indexed_dims = [d for d, index in enumerate(indices) if index is not None]
    planes = list[Ids]()
    for plane in source.planes:
        if set(varying(plane)) & set(indexed_dims):
            state.freeze(plane)
        else:
            planes.append(_indexed(plane, indices))
    return [state.without_overlap(Labels(call.shape, planes))]


def _indexed(plane: Ids, indices: Sequence[Labels | None]) -> Ids:
    """Return the plane after indexing along dims on which it does not vary."""
    zeros = [None if i is None else torch.zeros((1,) * len(i.shape), dtype=torch.long) for i in indices]
    moved: Ids = torch.ops.aten.index.Tensor(torch.from_numpy(np.ascontiguousarray(plane)), zeros).numpy()
    return moved


def index_select(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through indexing of one dim by a vector."""
    source: Labels = call.args[0]
    _freeze_along(state, source, [int(call.args[1]) % len(source.shape)])
    return [Labels(call.shape, list(source.planes))]


def gathering(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `gather`, `sort` and `topk`, which select entries along one dim.

    Index tensors among the arguments have sizes of their own, which do not shrink.
    """
    source: Labels = call.args[0]
    ndim = len(source.shape)
    dim = int(call.argument("dim", -1)) % ndim if ndim else 0
    _freeze_along(state, source, [dim])
    for other in call.tensors()[1:]:
        state.freeze_all(other)
        _freeze_along(state, source, [d for d, size in enumerate(other.shape) if size > 1])
    if len(call.shape) < ndim:  # the dim is reduced to one entry
        return [Labels(tuple(r.shape), [p.squeeze(dim) for p in source.planes]) for r in call.results]
    kept = [p for p in source.planes if all(call.shape[d] == source.shape[d] for d in varying(p))]
    for plane in source.planes:
        if not any(plane is k for k in kept):
            state.freeze(plane)
    return [Labels(tuple(r.shape), list(kept)) for r in call.results]


def transform(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through Fourier transforms, which mix the entries along their dims."""
    source: Labels = call.args[0]
    _freeze_along(state, source, dims_of(call.argument("dim"), len(source.shape)))
    return [Labels(call.shape, list(source.planes))]


def sampling(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `grid_sample`: channels keep their labels, positions are selected."""
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
