"""Inputs of other sizes that a model takes: what a graph of it is tried on.

The batch is not among these sizes. Dims of equal extent are first changed together (the length of ids and of
their mask), then one by one (height, width).
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from fxsurgery.capture import reference_runs
from fxsurgery.capture.model_copies import Scratch
from fxsurgery.inputs import Inputs

Dim: TypeAlias = tuple[int, int]
"""A leaf of the inputs, by position, and one of its dims."""

MOST_CHANGES = 12
"""How many changes of a kind are tried."""

LARGEST_STEP = 64


@dataclass(frozen=True, eq=False)
class Variant:
    """Inputs of other sizes, and what the model gives for them."""

    inputs: Inputs
    dims: tuple[Dim, ...]
    """The dims that were changed; none where it is the batch."""
    outcome: reference_runs.ReferenceOutcome


class SizeVariants:
    """The variants of the example inputs that a model takes in eval mode, found when they are asked for.

    Args:
        scratch: copies of the model, with lively values.
        inputs: the example inputs.
        outcome: what such a copy gives for them; it is run where that is not known.
    """

    def __init__(
        self, scratch: Scratch, inputs: Inputs, outcome: reference_runs.ReferenceOutcome | None = None
    ) -> None:
        self._scratch, self._inputs, self._outcome = scratch, inputs, outcome
        self._refused = list[Variant]()

    @cached_property
    def example(self) -> Variant:
        """The example inputs themselves."""
        return self._run(self._inputs) if self._outcome is None else Variant(self._inputs, (), self._outcome)

    @cached_property
    def few(self) -> tuple[Variant, ...]:
        """Each extent a little and a good deal larger, or smaller where the model takes no larger one."""
        groups = groups_of(self._inputs).items()
        return self._taken((dims, choice(size)) for size, dims in groups for choice in (near, _far))

    @cached_property
    def all(self) -> tuple[Variant, ...]:
        """Also extents of 1, one dim at a time, and other batch sizes."""
        groups = groups_of(self._inputs)
        ones = [(dims, [1]) for size, dims in groups.items() if size > 1]
        singles = [
            ((dim,), [*near(size), *_far(size)]) for size, dims in groups.items() if len(dims) > 1 for dim in dims
        ]
        return (*self.few, *self._taken(ones), *self._taken(singles), *self._batches())

    @property
    def refused(self) -> tuple[Variant, ...]:
        """Inputs that the model refused, without an outcome, along dims of which it took no other size in `all`."""
        taken = {dim for variant in self.all for dim in variant.dims}
        return tuple(variant for variant in self._refused if not taken & set(variant.dims))

    def _taken(self, changes: Iterable[tuple[tuple[Dim, ...], list[int]]]) -> tuple[Variant, ...]:
        """One variant for each of `changes`, dims and the sizes to try, where the model takes one."""
        tried = (self._first(dims, [resized(self._inputs, dims, n) for n in sizes]) for dims, sizes in changes)
        return tuple(variant for variant in itertools.islice(tried, MOST_CHANGES) if variant is not None)

    def _batches(self) -> tuple[Variant, ...]:
        batch = self._inputs.batch
        sizes = {1, batch + 1, 2 * batch} - {batch} if batch and self._inputs.is_resizable else set[int]()
        tried = (self._first((), [self._inputs.resized(size)]) for size in sorted(sizes))
        return tuple(variant for variant in tried if variant is not None)

    def _run(self, inputs: Inputs, dims: tuple[Dim, ...] = ()) -> Variant:
        return Variant(inputs, dims, reference_runs.run_eval(self._scratch.copy(), inputs))

    def _first(self, dims: tuple[Dim, ...], choices: list[Inputs]) -> Variant | None:
        for changed in choices:
            try:
                return self._run(changed, dims)
            except Exception:  # noqa: BLE001 -- a model refuses a size in any way it likes
                self._refused.append(Variant(changed, dims, reference_runs.ReferenceOutcome({})))
        return None


def groups_of(inputs: Inputs) -> dict[int, tuple[Dim, ...]]:
    """The dims of the inputs by their size, without those of the batch."""
    found = dict[int, tuple[Dim, ...]]()
    for position, leaf in enumerate(inputs.leaves):
        if isinstance(leaf, Tensor):
            batch = inputs.batch_dim(leaf)
            for dim in (d for d in range(leaf.dim()) if d != batch):
                found[leaf.shape[dim]] = (*found.get(leaf.shape[dim], ()), (position, dim))
    return {size: dims for size, dims in found.items() if size > 0}


def near(size: int) -> list[int]:
    """The sizes next to `size`."""
    return [n for n in (size + 1, size - 1) if n > 0]


def _far(size: int) -> list[int]:
    """Sizes that a strided network is more likely to take, and that change its smallest maps."""
    step = min(size & -size, LARGEST_STEP)
    sizes = (size + step, 2 * size, size - step, size // 2)
    return [n for n in dict.fromkeys(sizes) if n > 0 and n not in {size - 1, size, size + 1}]


def resized(inputs: Inputs, dims: tuple[Dim, ...], size: int) -> Inputs:
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
