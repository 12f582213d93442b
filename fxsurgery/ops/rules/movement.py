"""Operations that only move entries: running the same operation on the planes moves the labels."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fxsurgery.ops.labels import Labels, padded, varying
from fxsurgery.ops.propagation_state import PropagationState
from fxsurgery.ops.rules.call import AtenCall, dims_of
from fxsurgery.ops.union_find import Ids


def same(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Return the labels of the input."""
    del state
    return [Labels(tuple(r.shape), list(call.args[0].planes)) for r in call.results]


def move(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Run the operation on each plane."""
    source: Labels = call.args[0]
    outputs = [Labels(tuple(r.shape)) for r in call.results]
    for plane in source.planes:
        for output, moved in zip(outputs, _moved(plane, source.shape, _mover(call)), strict=True):
            output.planes.append(moved)
    return [state.without_overlap(output) for output in outputs]


def rotation(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `roll`: labels are rolled with the entries."""
    source: Labels = call.args[0]
    shifts, dims = call.args[1], dims_of(call.argument("dims"), len(source.shape))
    labels = Labels(call.shape)
    for plane in source.planes:
        if not call.argument("dims") and varying(plane):
            state.freeze(plane)
            continue
        turned = [(shift, d) for shift, d in zip(shifts, dims, strict=True) if d in varying(plane)]
        labels.planes.append(np.roll(plane, [s for s, _ in turned], [d for _, d in turned]) if turned else plane)
    return [labels]


def viewing(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `view`: labels are reshaped within matching runs of dims; other dims keep size 1."""
    source: Labels = call.args[0]
    runs = _runs(source.shape, call.shape)
    return [
        state.without_overlap(Labels(call.shape, [_viewed(p, source.shape, call.shape, runs) for p in source.planes]))
    ]


_Run = tuple[range, range]


def _runs(old: Sequence[int], new: Sequence[int]) -> list[_Run]:
    """Return the shortest runs of dims of `old` and `new` that contain the same entries, in order."""
    runs, i, j = list[_Run](), 0, 0
    while i < len(old) or j < len(new):
        start, left, right = (i, j), 1, 1
        i, left = (i + 1, old[i]) if i < len(old) else (i, left)
        j, right = (j + 1, new[j]) if j < len(new) else (j, right)
        while left != right and (i < len(old) or j < len(new)):
            if (left < right and i < len(old)) or j >= len(new):
                i, left = i + 1, left * old[i]
            else:
                j, right = j + 1, right * new[j]
        runs.append((range(start[0], i), range(start[1], j)))
    return runs


def _viewed(plane: Ids, old: Sequence[int], new: Sequence[int], runs: Sequence[_Run]) -> Ids:
    whole, shape = [1] * len(old), [1] * len(new)
    for before, after in runs:
        if any(plane.shape[d] > 1 for d in before):
            for d in before:
                whole[d] = old[d]
            for d in after:
                shape[d] = new[d]
    return np.broadcast_to(plane, whole).reshape(shape)


def selection(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `select`: the selected entry is frozen."""
    source: Labels = call.args[0]
    dim, index = call.argument("dim") % len(source.shape), call.argument("index")
    for plane in source.planes:
        if dim in varying(plane):
            state.freeze(np.take(plane, [index], axis=dim))
    return move(state, call)


def channel_shuffle(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through a channel shuffle: the same channel of every group forms one unit."""
    source: Labels = call.args[0]
    groups = state.vector(source, 1).reshape(int(call.args[1]), -1)
    state.union(groups, groups[:1])
    state.refresh(source)
    return move(state, call)


def gated_halves(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through GLU: one half of a dim gates the other."""
    source: Labels = call.args[0]
    dim = int(call.argument("dim", -1)) % len(source.shape)
    first, second = np.split(state.vector(source, dim), 2)
    state.union(first, second)
    state.refresh(source)
    others = [p for p in source.planes if varying(p) != [dim]]
    return [Labels(call.shape, [*others, *state.labeled(call.shape, {dim: first}).planes])]


def tiling(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `repeat`: labels are repeated with the entries."""
    del state
    source, counts = call.args[:2]
    labels = Labels(call.shape)
    for plane in source.planes:
        wide = padded(plane, len(counts))
        labels.planes.append(np.tile(wide, [n if size > 1 else 1 for n, size in zip(counts, wide.shape, strict=True)]))
    return [labels]


def mirroring(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `flip`: labels are flipped with the entries."""
    del state
    source: Labels = call.args[0]
    dims = dims_of(call.args[1], len(source.shape))
    return [Labels(call.shape, [np.flip(plane, tuple(dims)) for plane in source.planes])]


def pixel_shuffle(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `pixel_shuffle` and `fold`: the input channels of one patch form one unit."""
    rows = _channels_alone(state, call.args[0]).reshape(call.shape[1], -1)
    state.union(rows, rows[:, :1])
    return [state.labeled(call.shape, {1: rows[:, 0]})]


def patches(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `unfold` and `pixel_unshuffle`: each channel becomes one channel per patch entry."""
    channels = _channels_alone(state, call.args[0])
    return [state.labeled(call.shape, {1: np.repeat(channels, call.shape[1] // len(channels))})]


def _channels_alone(state: PropagationState, source: Labels) -> Ids:
    channels = state.vector(source, 1)
    for plane in source.planes:
        if varying(plane) != [1]:
            state.freeze(plane)
    return channels


def windows(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `Tensor.unfold`: windows along an unlabeled dim, in a new last dim."""
    source: Labels = call.args[0]
    _freeze_along(state, source, [int(call.args[1]) % len(source.shape)])
    return [Labels(call.shape, [plane[..., None] for plane in source.planes])]


def to_complex(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `view_as_complex`: real and imaginary parts form one unit."""
    source: Labels = call.args[0]
    last = len(source.shape) - 1
    for plane in source.planes:
        if last in varying(plane):
            state.union(plane, plane[..., :1])
    state.refresh(source)
    return [Labels(call.shape, [plane[..., 0] for plane in source.planes])]


def to_real(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through `view_as_real`: real and imaginary parts are in a new last dim."""
    del state
    source: Labels = call.args[0]
    return [Labels(call.shape, [plane[..., None] for plane in source.planes])]


def draw(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Propagate through random tensors shaped like the input: with fewer entries, all numbers would change."""
    for labels in call.tensors():
        state.freeze_all(labels)
    return creation(state, call)


def creation(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Return labels without planes for a new tensor."""
    del state
    return [Labels(tuple(r.shape)) for r in call.results]


def _freeze_along(state: PropagationState, labels: Labels, dims: Sequence[int]) -> None:
    for plane in labels.planes:
        if set(varying(plane)) & set(dims):
            state.freeze(plane)
    state.refresh(labels)


def _mover(call: AtenCall) -> Callable[[Tensor], Tensor | Sequence[Tensor]]:
    return lambda x: call.op(x, *call.args[1:], **call.kwargs)


def _moved(plane: Ids, shape: tuple[int, ...], mover: Callable[[Tensor], Tensor | Sequence[Tensor]]) -> list[Ids]:
    """Return the planes of each result; a broadcast dim (stride 0) keeps size 1."""
    # NumPy treats a flipped dim of size 1 as contiguous, but PyTorch accepts no negative stride.
    is_flipped = any(stride < 0 for stride in plane.strides)
    own = plane.copy() if is_flipped else np.require(plane, requirements=["C", "W"])
    moved = mover(torch.from_numpy(own).expand(shape))
    return [_compact(moved)] if isinstance(moved, Tensor) else [_compact(part) for part in moved]


def _compact(moved: Tensor) -> Ids:
    for dim in range(moved.dim()):
        if moved.size(dim) > 1 and moved.stride(dim) == 0:
            moved = moved.narrow(dim, 0, 1)
    return moved.numpy()
