"""Operations that reduce or scan dims: sums, means, pooling, softmax.

Labels end at reduced dims. Only a sum is unaffected by the removal of an entry that is zero.
"""

from collections.abc import Sequence

from fxsurgery.ops.labels import Labels, first_along, varying
from fxsurgery.ops.propagation_state import PropagationState
from fxsurgery.ops.rules.call import AtenCall, Rule, dims_of
from fxsurgery.ops.rules.pointwise import pointwise
from fxsurgery.ops.union_find import Ids


def reduction(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through a reduction: labels along reduced dims end, the others are kept."""
    if call.name in {"max", "min"} and len(call.args) > 1 and isinstance(call.args[1], Labels):
        return pointwise(state, call)
    source: Labels = call.args[0]
    ndim = len(source.shape)
    reduced = dims_of(call.argument("dim"), ndim)
    planes = [p for plane in source.planes if (p := _after(state, call, plane, reduced)) is not None]
    if len(call.shape) != ndim:
        planes = [p.reshape([s for d, s in enumerate(p.shape) if d not in reduced]) for p in planes]
    return [Labels(tuple(r.shape), list(planes)) for r in call.results]


def _after(state: PropagationState, call: AtenCall, plane: Ids, reduced: list[int]) -> Ids | None:
    gone = [d for d in varying(plane) if d in reduced]
    if not gone:
        return plane
    kept = [d for d in varying(plane) if d not in gone]
    if not kept:
        state.mark_ungateable(plane)
        if call.name != "sum":
            state.mark_inexact(plane)
        return None
    state.union(plane, first_along(plane, kept))
    return state.canonical(first_along(plane, kept))


def scan(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through softmax and cumulative sums, whose entries depend on the whole dim."""
    source: Labels = call.args[0]
    dim = call.args[1] % max(len(source.shape), 1)
    for plane in source.planes:
        if dim in varying(plane):
            state.resolved(plane, [d for d in varying(plane) if d != dim])
    state.refresh(source)
    for plane in source.planes:
        if dim in varying(plane):
            state.mark_inexact(plane)
            state.mark_ungateable(plane)
    return [Labels(tuple(r.shape), list(source.planes)) for r in call.results]


def windowed(rank: int) -> Rule:
    """Return the rule of pooling and resampling over the last `rank` dims: labels on them are frozen."""

    def rule(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
        source: Labels = call.args[0]
        channels = list(range(len(source.shape) - rank))
        state.resolve(source, channels)
        for plane in source.planes:
            if not set(varying(plane)) <= set(channels):
                state.freeze(plane)
        state.refresh(source)
        return [Labels(tuple(r.shape), list(source.planes)) for r in call.results]

    return rule
