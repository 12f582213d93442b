"""Operations that join or extend tensors: concatenation, stacking, padding."""

from collections.abc import Sequence

import numpy as np

from fxsurgery.ops.labels import Labels, varying
from fxsurgery.ops.propagation_state import PropagationState
from fxsurgery.ops.rules.call import AtenCall
from fxsurgery.ops.union_find import Ids


def concatenation(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through a concatenation: labels are concatenated along its dim and must agree along any other."""
    ndim = len(call.shape)
    parts: list[Labels] = [p for p in call.args[0] if len(p.shape) == ndim]
    return [_joined(state, parts, call.argument("dim", 0) % ndim, call.shape)]


def stacking(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through a concatenation along a new dim."""
    dim = call.argument("dim", 0) % len(call.shape)
    parts = [
        Labels((*p.shape[:dim], 1, *p.shape[dim:]), [np.expand_dims(q, dim) for q in p.planes]) for p in call.args[0]
    ]
    return [_joined(state, parts, dim, call.shape)]


def _joined(state: PropagationState, parts: list[Labels], dim: int, shape: tuple[int, ...]) -> Labels:
    """Join labels; those over several dims, such as (heads, channels), are kept if every part has them."""
    along = [_along(part, dim) for part in parts]
    dims = {tuple(varying(p)) for planes in along for p in planes}
    if len(dims) > 1 or (any(len(d) > 1 for d in dims) and not all(len(planes) == 1 for planes in along)):
        for part in parts:
            if any(len(varying(p)) > 1 for p in _along(part, dim)):
                state.resolve(part, [dim])
        along = [_along(part, dim) for part in parts]
    planes = list[Ids]()
    if all(len(found) == 1 for found in along) and len({tuple(varying(p)) for (p,) in along}) == 1:
        planes.append(np.concatenate([p for (p,) in along], axis=dim))
    elif any(along):
        vectors = [state.vector(part, dim) for part in parts]
        planes.append(np.concatenate(vectors).reshape([-1 if d == dim else 1 for d in range(len(shape))]))
    others = [[p for p in part.planes if dim not in varying(p)] for part in parts]
    planes += _agreed(state, others)
    return state.without_overlap(Labels(shape, planes))


def _along(part: Labels, dim: int) -> list[Ids]:
    return [p for p in part.planes if dim in varying(p)]


def _agreed(state: PropagationState, others: list[list[Ids]]) -> list[Ids]:
    """Return the planes that every part has on the same dims, united; all others are frozen."""
    agreed = list[Ids]()
    labeled_dims = {tuple(varying(p)) for planes in others for p in planes}
    for dims in sorted(labeled_dims):
        found = [next((p for p in planes if tuple(varying(p)) == dims), None) for planes in others]
        known = [p for p in found if p is not None]
        if len(known) < len(others):
            for plane in known:
                state.freeze(plane)
            continue
        for plane in known[1:]:
            state.union(known[0], plane)
        agreed.append(known[0])
    return agreed


def padding(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through padding: new entries along a labeled dim are separate units."""
    source: Labels = call.args[0]
    amounts: Sequence[int] = call.args[1]
    ndim, planes = len(source.shape), list[Ids]()
    for plane in source.planes:
        touched = [d for d in varying(plane) if any(_amounts(amounts, ndim, d))]
        low, high = _amounts(amounts, ndim, touched[0]) if touched else (0, 0)
        if not touched:
            planes.append(plane)
        elif len(varying(plane)) > 1 or low < 0 or high < 0:
            state.freeze(plane)
        else:
            ids = np.concatenate([state.atoms.fresh(low), plane.ravel(), state.atoms.fresh(high)])
            planes.append(ids.reshape([-1 if d == touched[0] else 1 for d in range(ndim)]))
    return [state.without_overlap(Labels(call.shape, planes))]


def _amounts(amounts: Sequence[int], ndim: int, dim: int) -> tuple[int, int]:
    """Return the amounts of padding before and after `dim`; `amounts` starts with the last dim."""
    start = 2 * (ndim - 1 - dim)
    return (amounts[start], amounts[start + 1]) if start < len(amounts) else (0, 0)
