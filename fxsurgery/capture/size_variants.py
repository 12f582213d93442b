"""Inputs of other sizes that a model takes: what a graph of it is tried on.

The batch is not among these sizes. Dims of equal extent are first changed together (the length of ids and of
their mask), then one by one (height, width).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self, TypeAlias

import torch
from torch import Tensor, nn

from fxsurgery.capture import trials
from fxsurgery.inputs import Inputs

Dim: TypeAlias = tuple[int, int]
"""A leaf of the inputs, by position, and one of its dims."""

MOST_RUNS = 40
"""How often a model is run to find sizes that it takes."""

LARGEST_STEP = 64


@dataclass(frozen=True, eq=False)
class Variant:
    """Inputs of other sizes, and what the model gives for them."""

    inputs: Inputs
    dims: tuple[Dim, ...]
    """The dims that were changed; none where it is the batch."""
    outcome: trials.Outcome

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs, dims: tuple[Dim, ...] = ()) -> Self:
        """Run a copy of `model` on `inputs`, whatever it may raise."""
        return cls(inputs, dims, trials.run_eval(trials.lively_copy(model, trials.lively(model)), inputs))


def size_variants(model: nn.Module, inputs: Inputs) -> tuple[Variant, ...]:
    """Return the variants of `inputs` that `model` takes in eval mode, those of other batch sizes first.

    Args:
        model: a private copy, which stays as it is.
        inputs: the example inputs.
    """
    runs = 0
    found = list[Variant]()
    for dims, changes in _changes(inputs):
        for changed in changes:
            if runs == MOST_RUNS:
                return tuple(found)
            runs += 1
            try:
                found.append(Variant.of(model, changed, dims))
            except Exception:  # noqa: BLE001 -- a model refuses a size in any way it likes
                continue
            break
    return tuple(found)


def _changes(inputs: Inputs) -> Iterator[tuple[tuple[Dim, ...], list[Inputs]]]:
    """The dims to change, and the inputs to try, of which one will do."""
    for size in {1, (inputs.batch or 0) + 1} - {inputs.batch} if inputs.batch else ():
        yield (), [inputs.resized(size)]
    groups = _groups(inputs)
    for size, dims in groups.items():
        for choices in (_near(size), _far(size), [1] if size > 1 else []):
            yield dims, [_resized(inputs, dims, n) for n in choices]
    for size, dims in groups.items():
        for dim in dims if len(dims) > 1 else ():
            yield (dim,), [_resized(inputs, (dim,), n) for n in (*_near(size), *_far(size))]


def _groups(inputs: Inputs) -> dict[int, tuple[Dim, ...]]:
    """The dims of the inputs by their size, without those of the batch."""
    found = dict[int, tuple[Dim, ...]]()
    for position, leaf in enumerate(inputs.leaves):
        if isinstance(leaf, Tensor):
            first = 1 if inputs.is_batched(leaf) else 0
            for dim in range(first, leaf.dim()):
                found[leaf.shape[dim]] = (*found.get(leaf.shape[dim], ()), (position, dim))
    return {size: dims for size, dims in found.items() if size > 0}


def _near(size: int) -> list[int]:
    return [n for n in (size + 1, size - 1) if n > 0]


def _far(size: int) -> list[int]:
    """Sizes that a strided network is more likely to take, and that change its smallest maps."""
    step = min(size & -size, LARGEST_STEP)
    sizes = (size + step, 2 * size, size - step, size // 2)
    return [n for n in dict.fromkeys(sizes) if n > 0 and n not in {size - 1, size, size + 1}]


def _resized(inputs: Inputs, dims: tuple[Dim, ...], size: int) -> Inputs:
    """The inputs with `size` entries along each of `dims`: the first ones, repeated where there are too few."""
    order = iter([position for position, leaf in enumerate(inputs.leaves) if isinstance(leaf, Tensor)])

    def change(tensor: Tensor) -> Tensor:
        here = next(order)
        for leaf, dim in dims:
            if leaf == here:
                rows = torch.arange(size, device=tensor.device) % tensor.shape[dim]
                tensor = tensor.index_select(dim, rows)
        return tensor

    return inputs.map(change)
