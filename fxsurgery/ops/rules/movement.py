"""Operations that only move data: the same operation, run on the planes, moves the labels."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fxsurgery.ops.labels import Labels, padded, varying
from fxsurgery.ops.propagation_state import PropagationState
from fxsurgery.ops.rules.call import AtenCall, dims_of
from fxsurgery.ops.union_find import Ids


def same(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """The labels of the input."""
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
    """Roll: the labels go round with the entries."""
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
    """`view`: labels are reshaped within the runs of dims that become runs of dims; the other dims stay of size 1."""
    source: Labels = call.args[0]
    runs = _runs(source.shape, call.shape)
    return [
        state.without_overlap(Labels(call.shape, [_viewed(p, source.shape, call.shape, runs) for p in source.planes]))
    ]


_Run = tuple[range, range]


def _runs(old: Sequence[int], new: Sequence[int]) -> list[_Run]:
    """The shortest runs of dims of `old` and of `new` that hold the same entries, in order."""
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
    """One entry of a dim, picked by number: that entry stays."""
    source: Labels = call.args[0]
    dim, index = call.argument("dim") % len(source.shape), call.argument("index")
    for plane in source.planes:
        if dim in varying(plane):
            state.freeze(np.take(plane, [index], axis=dim))
    return move(state, call)


def channel_shuffle(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Channels are dealt out in `groups` hands: the same channel goes from each."""
    source: Labels = call.args[0]
    hands = state.vector(source, 1).reshape(int(call.args[1]), -1)
    state.union(hands, hands[:1])
    state.refresh(source)
    return move(state, call)


def gated_halves(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """GLU: one half of a dim gates the other."""
    source: Labels = call.args[0]
    dim = int(call.argument("dim", -1)) % len(source.shape)
    first, second = np.split(state.vector(source, dim), 2)
    state.union(first, second)
    state.refresh(source)
    others = [p for p in source.planes if varying(p) != [dim]]
    return [Labels(call.shape, [*others, *state.labeled(call.shape, {dim: first}).planes])]


def tiling(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """`repeat`: the labels of a dim follow each other as often as its entries do."""
    del state
    source, counts = call.args[:2]
    labels = Labels(call.shape)
    for plane in source.planes:
        wide = padded(plane, len(counts))
        labels.planes.append(np.tile(wide, [n if size > 1 else 1 for n, size in zip(counts, wide.shape, strict=True)]))
    return [labels]


def mirroring(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """`flip`: the labels turn round with the entries."""
    del state
    source: Labels = call.args[0]
    dims = dims_of(call.args[1], len(source.shape))
    return [Labels(call.shape, [np.flip(plane, tuple(dims)) for plane in source.planes])]


def pixel_shuffle(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """`pixel_shuffle`, `fold`: the channels that are the places of one patch are one."""
    rows = _channels_alone(state, call.args[0]).reshape(call.shape[1], -1)
    state.union(rows, rows[:, :1])
    return [state.labeled(call.shape, {1: rows[:, 0]})]


def patches(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """`unfold`, `pixel_unshuffle`: each channel becomes as many as there are places in a patch."""
    channels = _channels_alone(state, call.args[0])
    return [state.labeled(call.shape, {1: np.repeat(channels, call.shape[1] // len(channels))})]


def _channels_alone(state: PropagationState, source: Labels) -> Ids:
    channels = state.vector(source, 1)
    for plane in source.planes:
        if varying(plane) != [1]:
            state.freeze(plane)
    return channels


def windows(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """`Tensor.unfold`: windows along an unlabeled dim, in a new last dim."""
    source: Labels = call.args[0]
    _freeze_along(state, source, [int(call.args[1]) % len(source.shape)])
    return [Labels(call.shape, [plane[..., None] for plane in source.planes])]


def to_complex(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """`view_as_complex`: the two parts of a number are one."""
    source: Labels = call.args[0]
    last = len(source.shape) - 1
    for plane in source.planes:
        if last in varying(plane):
            state.union(plane, plane[..., :1])
    state.refresh(source)
    return [Labels(call.shape, [plane[..., 0] for plane in source.planes])]


def to_real(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """`view_as_real`: two parts in a new last dim."""
    del state
    source: Labels = call.args[0]
    return [Labels(call.shape, [plane[..., None] for plane in source.planes])]


def draw(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """Random numbers, as many as the input has entries: of fewer, all are others, and nothing can be compared."""
    for labels in call.tensors():
        state.freeze_all(labels)
    return creation(state, call)


def creation(state: PropagationState, call: AtenCall) -> Sequence[Labels]:
    """A new tensor carries no label."""
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
    """The planes of each result; a dim that stays broadcast (stride 0) stays of size 1."""
    # NumPy calls a flipped dim of size 1 contiguous; PyTorch takes no negative stride.
    is_flipped = any(stride < 0 for stride in plane.strides)
    own = plane.copy() if is_flipped else np.require(plane, requirements=["C", "W"])
    moved = mover(torch.from_numpy(own).expand(shape))
    return [_compact(moved)] if isinstance(moved, Tensor) else [_compact(part) for part in moved]


def _compact(moved: Tensor) -> Ids:
    for dim in range(moved.dim()):
        if moved.size(dim) > 1 and moved.stride(dim) == 0:
            moved = moved.narrow(dim, 0, 1)
    return moved.numpy()
