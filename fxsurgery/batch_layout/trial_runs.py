"""Batch dims of the inputs, inferred from trial runs: outputs grow with the batch, and samples stay independent."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxsurgery.batch_layout.targets import with_second
from fxsurgery.inputs import BatchDims, Inputs, dims_of_size, is_integer_vector, is_rising_from_zero
from fxsurgery.surroundings import without_warnings

Run: TypeAlias = Callable[[Inputs], Sequence[Tensor]]
"""Returns the output tensors for some inputs; raises if the model does not accept them."""


_SEED = 20_012


@dataclass(frozen=True)
class _Verdict:
    """Evidence of trial runs for a choice of dims; `None` where they are inconclusive."""

    follows: bool | None
    """Whether the outputs grow with the batch; inconclusive if the model refuses another size."""
    apart: bool | None
    """Whether a change of one sample affects only its part of the outputs."""

    @property
    def is_batch(self) -> bool:
        return bool(self.follows) and self.apart is not False


def by_running(inputs: Inputs, run: Run, outputs: Sequence[Tensor], names: Sequence[str]) -> tuple[Inputs, str | None]:
    """Return the inputs with the batch dims that the outputs follow, and a note if these are not the usual ones.

    Args:
        inputs: example inputs; batch dims that they already have are kept.
        run: runs the model, deterministically.
        outputs: its outputs for `inputs`.
        names: names of the positional inputs, then of the keyword inputs, for the note.
    """
    if inputs.batch_dims is not None or not inputs.batch or not any(x.dim() for x in outputs):
        return inputs, None
    usual = replace(inputs, batch_dims=inputs.dims)
    verdict = _judged(usual, run, outputs)
    if verdict.is_batch:
        return usual, None
    others = _others(usual)
    if verdict.follows is None and verdict.apart is not False:
        # The samples are along dim 0, but fewer tensors have it than assumed, or the model fixes their number.
        alike = (other for other in others if other.batch == usual.batch and _includes(other, usual))
        return next((other for other in alike if _judged(other, run, outputs).is_batch), usual), None
    others = [other for other in others if _judged(other, run, outputs).is_batch]
    if others:
        also = f", and {_described(others[1], names)} fits too" if len(others) > 1 else ""
        return others[0], (
            f"the batch is taken to be {_described(others[0], names)}, which the outputs follow{also}; "
            "batch_dims= overrides this"
        )
    samples = _counted_out(inputs, outputs)
    if verdict.apart or (verdict.follows is not False and samples is None):
        return usual, None
    costs = "all of the example inputs together" if samples is None else f"one of the {samples} samples in them"
    return replace(inputs, batch_dims=(None,) * len(usual.tensors), samples=samples), (
        f"no dim of the inputs is taken to be the batch, since no output follows one: costs are for {costs}; "
        "batch_dims= overrides this"
    )


def _counted_out(inputs: Inputs, outputs: Sequence[Tensor]) -> int | None:
    """Return the number of samples that share the rows of a tensor, if an output has that size.

    The inputs hold n + 1 bounds from 0 to the number of rows; the sample of each row, from 0 to n - 1; or n lengths.
    """
    made, lengths = {len(x) for x in outputs if x.dim()}, {len(x) for x in inputs.tensors if x.dim() > 1}
    for x in inputs.tensors:
        others = lengths | {len(y) for y in inputs.tensors if y.dim() and y is not x}
        if (found := _samples_by(x, others)) is not None and found in made:
            return found
    return None


def _samples_by(x: Tensor, lengths: set[int]) -> int | None:
    if is_rising_from_zero(x):
        last = int(x[-1])
        return len(x) - 1 if last in lengths else last + 1 if len(x) in lengths else None
    return len(x) if is_integer_vector(x) and int(x.sum()) in lengths else None


def _includes(other: Inputs, usual: Inputs) -> bool:
    return all(dim is None or dim == d for dim, d in zip(usual.dims, other.dims, strict=True))


def _others(usual: Inputs) -> list[Inputs]:
    """Return alternative batch dims: dim 0 of a later tensor, with dim 1 of time-first ones; and dim 1 of each."""
    tensors = usual.tensors
    sizes = dict.fromkeys(len(x) for x in tensors if x.dim())
    found = dict[BatchDims, None]()
    for dims, size in ((dims_of_size(tensors, size), size) for size in sizes):
        found[dims] = None
        found[with_second(tensors, dims, size)] = None
    found |= dict.fromkeys(dims_of_size(tensors, x.size(1), 1) for x in tensors if x.dim() > 1)
    found.pop(usual.dims, None)
    return [replace(usual, batch_dims=dims) for dims in found]


def _judged(inputs: Inputs, run: Run, outputs: Sequence[Tensor]) -> _Verdict:
    if not inputs.is_resizable:
        return _Verdict(None, None)
    size = inputs.batch or 0
    grown = _tried(run, inputs.grown())
    follows = None if grown is None else _follow(outputs, grown, size)
    if size < 2:
        return _Verdict(follows, None)
    moved = _tried(run, _first_changed(inputs))
    if moved is None or len(moved) != len(outputs):
        return _Verdict(follows, None)
    pairs = [(a, b) for a, b in zip(outputs, moved, strict=True) if a.dim() and not _same(a, b)]
    return _Verdict(follows, all(_is_apart(a, b, size) for a, b in pairs) if pairs else None)


def _tried(run: Run, inputs: Inputs) -> Sequence[Tensor] | None:
    try:
        with without_warnings():
            return run(inputs)
    except Exception:  # noqa: BLE001 -- a model refuses inputs in any way it likes, and that is the finding
        return None


def _follow(outputs: Sequence[Tensor], grown: Sequence[Tensor], size: int) -> bool:
    """Return True if a dim of an output grows with the batch, or the number of outputs changes."""
    return len(outputs) != len(grown) or any(_grows(a, b, size) for a, b in zip(outputs, grown, strict=True))


def _grows(before: Tensor, after: Tensor, size: int) -> bool:
    """Return True if a dim goes from k n to k (n + 1)."""
    if before.dim() != after.dim():
        return size == 1  # squeezed away
    pairs = zip(before.shape, after.shape, strict=True)
    return any(a and a % size == 0 and b == a // size * (size + 1) for a, b in pairs)


def _first_changed(inputs: Inputs) -> Inputs:
    """Return the inputs with another first sample: floats with noise, other values of the last sample; same offsets."""
    generator = torch.Generator().manual_seed(_SEED)
    offsets = iter([found for found, d in zip(inputs.offsets, inputs.dims, strict=True) if d is not None])

    def changed(x: Tensor, dim: int) -> Tensor:
        if next(offsets):
            return x
        first, last = x.select(dim, 0), x.select(dim, x.size(dim) - 1)
        if x.is_floating_point():
            spread = float(x.double().std(correction=0))
            last = first + torch.randn(first.shape, generator=generator).to(x) * (0.3 * spread or 1.0)
        new = x.clone()
        new.select(dim, 0).copy_(last)
        return new

    return inputs.map_batched(changed)


def _is_apart(before: Tensor, after: Tensor, size: int) -> bool:
    """Return True if at most the entries of one sample along a dim have changed."""
    if before.shape != after.shape:
        return False
    different = ~_equal(before, after)
    for dim, length in enumerate(before.shape):
        if length and length % size == 0:
            along = different.movedim(dim, 0).reshape(length, -1).any(1)
            if int(along.sum()) <= length // size:
                return True
    return False


def _same(before: Tensor, after: Tensor) -> bool:
    return before.shape == after.shape and bool(_equal(before, after).all())


def _equal(before: Tensor, after: Tensor) -> Tensor:
    return (before == after) | (before.isnan() & after.isnan())


def _described(inputs: Inputs, names: Sequence[str]) -> str:
    """Return a description of the first batch dim."""
    dims = iter(inputs.dims)
    for name, value in zip(names, [*inputs.args, *inputs.kwargs.values()], strict=True):
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor) and (dim := next(dims)) is not None:
                return f"dim {dim} of `{name}`"
    return "no dim"
