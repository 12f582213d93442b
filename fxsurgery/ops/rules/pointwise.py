"""Pointwise operations: entries that are combined form one unit.

Under broadcasting, a label is frozen along dims in which the other operand has extent but no label, since that operand
would not shrink.
"""

from collections.abc import Sequence

from fxsurgery.ops.labels import Labels, first_along, padded, varying
from fxsurgery.ops.propagation_state import PropagationState
from fxsurgery.ops.rules.call import AtenCall
from fxsurgery.ops.union_find import Ids


def pointwise(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Join the labels of all operands."""
    ndim = len(call.shape)
    shape: tuple[int, ...] | None = None
    planes = list[Ids]()
    for operand in call.tensors():
        other = (1,) * (ndim - len(operand.shape)) + operand.shape
        others = [padded(p, ndim) for p in operand.planes]
        if shape is None:
            shape, planes = other, others
            continue
        planes = join(state, (shape, planes), (other, others))
        shape = tuple(map(max, shape, other))
    labels = state.without_overlap(Labels(call.shape, planes))
    return [Labels(tuple(r.shape), list(labels.planes)) for r in call.results]


def join(
    state: PropagationState, left: tuple[Sequence[int], list[Ids]], right: tuple[Sequence[int], list[Ids]]
) -> list[Ids]:
    """Return the planes of the broadcast combination of two operands.

    Args:
        state: the analysis.
        left: shape and planes of one operand.
        right: shape and planes of the other operand, of the same rank.
    """
    (left_shape, left_planes), (right_shape, unmatched_right) = left, right
    joined = list[Ids]()
    for start in left_planes:
        plane, met, rest = state.canonical(start), False, list[Ids]()
        for candidate in unmatched_right:
            other = state.canonical(candidate)
            if plane is None or other is None or not set(varying(plane)) & set(varying(other)):
                rest.append(candidate)
                continue
            met = True
            if set(varying(plane)) != set(varying(other)):
                _decide_later(state, (left_shape, plane), (right_shape, other))
                plane = max(plane, other, key=lambda p: p.size)
                continue
            state.union(plane, other)
            plane = state.canonical(plane)
        unmatched_right = rest
        if plane is not None:
            joined += [plane] if met else unmatched(state, plane, right_shape)
    for candidate in unmatched_right:
        if (other := state.canonical(candidate)) is not None:
            joined += unmatched(state, other, left_shape)
    return joined


def unmatched(state: PropagationState, plane: Ids, other_shape: Sequence[int]) -> list[Ids]:
    """Return what remains of a plane without a matching label: it is united along dims where the other has extent."""
    free = [d for d in varying(plane) if other_shape[d] == 1]
    if len(free) == len(varying(plane)):
        return [plane]
    if not free:
        state.freeze(plane)
        return []
    state.union(plane, first_along(plane, free))
    left = state.canonical(first_along(plane, free))
    return [] if left is None else [left]


def _decide_later(state: PropagationState, left: tuple[Sequence[int], Ids], right: tuple[Sequence[int], Ids]) -> None:
    """Postpone the union of a plane over (heads, width) with one over (width): a consumer may resolve the larger."""

    def decide() -> None:
        a, b = state.canonical(left[1]), state.canonical(right[1])
        if a is not None and b is not None and set(varying(a)) & set(varying(b)):
            state.union(a, b)
            return
        if a is not None:
            unmatched(state, a, right[0])
        if b is not None:
            unmatched(state, b, left[0])

    state.later(decide)
