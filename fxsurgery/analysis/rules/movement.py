"""Operations that only move data: the same operation, run on the planes, moves the labels."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from fxsurgery.analysis.atoms import Ids
from fxsurgery.analysis.labels import Labels, varying
from fxsurgery.analysis.provenance import Provenance
from fxsurgery.analysis.rules.call import Call, Rule, dims_of

SAME = ("clone", "contiguous", "_to_copy", "detach", "alias", "lift_fresh_copy", "dropout", "native_dropout")
MOVES = (
    "view _unsafe_view reshape permute transpose t squeeze unsqueeze expand select split split_with_sizes "
    "unbind pixel_shuffle pixel_unshuffle repeat unfold diagonal"
).split()
CREATIONS = (
    "ones zeros full empty arange new_zeros new_ones new_full new_empty linspace scalar_tensor rand randn"
).split()
LIKE = ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like")


def same(state: Provenance, call: Call) -> Sequence[Labels]:
    """The labels of the input."""
    del state
    return [Labels(tuple(r.shape), list(call.args[0].planes)) for r in call.results]


def move(state: Provenance, call: Call) -> Sequence[Labels]:
    """Run the operation on each plane."""
    source: Labels = call.args[0]
    outputs = [Labels(tuple(r.shape)) for r in call.results]
    for plane in source.planes:
        for output, moved in zip(outputs, _moved(plane, source.shape, _mover(call)), strict=True):
            output.planes.append(moved)
    return [state.without_overlap(output) for output in outputs]


def slicing(state: Provenance, call: Call) -> Sequence[Labels]:
    """A slice with a step other than 1 picks channels by number: frozen along the sliced dim."""
    source: Labels = call.args[0]
    if call.argument("step", 1) != 1:
        _freeze_along(state, source, [call.argument("dim", 0) % len(source.shape)])
    return move(state, call)


def rotation(state: Provenance, call: Call) -> Sequence[Labels]:
    """Roll and flip move channels by number: frozen along the moved dims."""
    source: Labels = call.args[0]
    _freeze_along(state, source, dims_of(call.argument("dims"), len(source.shape)))
    return [Labels(call.shape, list(source.planes))]


def selection(state: Provenance, call: Call) -> Sequence[Labels]:
    """One entry of a dim, picked by number: that entry stays."""
    source: Labels = call.args[0]
    dim, index = call.argument("dim") % len(source.shape), call.argument("index")
    for plane in source.planes:
        if dim in varying(plane):
            state.freeze(np.take(plane, [index], axis=dim))
    return move(state, call)


def channel_shuffle(state: Provenance, call: Call) -> Sequence[Labels]:
    """Channels are dealt out in `groups` hands: the same channel goes from each."""
    source: Labels = call.args[0]
    hands = state.vector(source, 1).reshape(int(call.args[1]), -1)
    state.union(hands, hands[:1])
    state.refresh(source)
    return move(state, call)


def creation(state: Provenance, call: Call) -> Sequence[Labels]:
    """A new tensor carries no label."""
    del state
    return [Labels(tuple(r.shape)) for r in call.results]


def _freeze_along(state: Provenance, labels: Labels, dims: Sequence[int]) -> None:
    for plane in labels.planes:
        if set(varying(plane)) & set(dims):
            state.freeze(plane)
    state.refresh(labels)


def _mover(call: Call) -> Callable[[Tensor], Tensor | Sequence[Tensor]]:
    if call.name in {"view", "_unsafe_view", "reshape"}:
        return lambda x: x.reshape(call.args[1])
    return lambda x: call.op(x, *call.args[1:], **call.kwargs)


def _moved(plane: Ids, shape: tuple[int, ...], mover: Callable[[Tensor], Tensor | Sequence[Tensor]]) -> list[Ids]:
    """The planes of each result; a dim that stays broadcast (stride 0) stays of size 1."""
    moved = mover(torch.from_numpy(np.ascontiguousarray(plane)).expand(shape))
    return [_compact(moved)] if isinstance(moved, Tensor) else [_compact(part) for part in moved]


def _compact(moved: Tensor) -> Ids:
    for dim in range(moved.dim()):
        if moved.size(dim) > 1 and moved.stride(dim) == 0:
            moved = moved.narrow(dim, 0, 1)
    return moved.numpy()


RULES: dict[str, Rule] = {
    **dict.fromkeys((*SAME, *LIKE), same),
    **dict.fromkeys(MOVES, move),
    **dict.fromkeys(CREATIONS, creation),
    "slice": slicing,
    "select": selection,
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), channel_shuffle),
    "roll": rotation,
    "flip": rotation,
}
