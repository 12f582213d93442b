"""Variants of the example inputs at other sizes that a model accepts, on which its graph is tried.

The batch size is varied separately. Dims of equal size are first changed together (the length of ids and of
their mask), then one at a time (height, width).
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxsurgery.capture import reference_runs
from fxsurgery.capture.model_copies import ScratchCopy
from fxsurgery.inputs import Inputs
from fxsurgery.surroundings import without_warnings

Dim: TypeAlias = tuple[int, int]
"""Position of an input leaf, and one of its dims."""

MAX_CHANGES = 12
"""Maximum number of changes of one kind to try."""

MAX_STEP = 64


@dataclass(frozen=True, eq=False)
class Variant:
    """Inputs of other sizes, and the model's outcome for them."""

    inputs: Inputs
    dims: tuple[Dim, ...]
    """The dims that were changed; empty if only the batch size was."""
    outcome: reference_runs.ReferenceOutcome


class SizeVariants:
    """The variants of the example inputs that a model accepts in eval mode, computed on demand.

    Args:
        scratch: copies of the model, with nonzero parameters.
        inputs: the example inputs.
        outcome: the outcome of such a copy for them; None to run it when it is needed.
    """

    def __init__(
        self, scratch: ScratchCopy, inputs: Inputs, outcome: reference_runs.ReferenceOutcome | None = None
    ) -> None:
        self._scratch, self._inputs, self._outcome = scratch, inputs, outcome
        self._refused = list[Variant]()

    @cached_property
    def example(self) -> Variant:
        """The example inputs with their outcome."""
        outcome = self._outcome or reference_runs.run_eval(self._scratch.copy(), self._inputs)
        return Variant(self._inputs, (), outcome)

    @cached_property
    def few(self) -> tuple[Variant, ...]:
        """Each size changed by one and by a larger step: upward or, if the model rejects that, downward."""
        groups = groups_of(self._inputs).items()
        return self._accepted(
            (dims, choice(size)) for size, dims in groups for choice in (adjacent_sizes, _distant_sizes)
        )

    @cached_property
    def all(self) -> tuple[Variant, ...]:
        """`few`, and also sizes of 1, single dims changed alone, and other batch sizes."""
        groups = groups_of(self._inputs)
        ones = [(dims, [1]) for size, dims in groups.items() if size > 1]
        singles = [
            ((dim,), [*adjacent_sizes(size), *_distant_sizes(size)])
            for size, dims in groups.items()
            if len(dims) > 1
            for dim in dims
        ]
        return (*self.few, *self._accepted(ones), *self._accepted(singles), *self._batches())

    @property
    def rejected(self) -> tuple[Variant, ...]:
        """Inputs that the model rejected, without an outcome, along dims for which `all` has no accepted size."""
        taken = {dim for variant in self.all for dim in variant.dims}
        return tuple(variant for variant in self._refused if not taken & set(variant.dims))

    def _accepted(self, changes: Iterable[tuple[tuple[Dim, ...], list[int]]]) -> tuple[Variant, ...]:
        """Return one variant for each of `changes` (dims, sizes to try) of which the model accepts a size."""
        tried = (self._first(dims, [resized(self._inputs, dims, n) for n in sizes]) for dims, sizes in changes)
        return tuple(variant for variant in itertools.islice(tried, MAX_CHANGES) if variant is not None)

    def _batches(self) -> tuple[Variant, ...]:
        batch = self._inputs.batch
        sizes = {1, batch + 1, 2 * batch} - {batch} if batch and self._inputs.is_resizable else set[int]()
        tried = (self._first((), [self._inputs.resized(size)]) for size in sorted(sizes))
        return tuple(variant for variant in tried if variant is not None)

    def _first(self, dims: tuple[Dim, ...], choices: list[Inputs]) -> Variant | None:
        for changed in choices:
            if (variant := accepted(self._scratch, changed, dims)) is not None:
                return variant
            self._refused.append(Variant(changed, dims, reference_runs.ReferenceOutcome({})))
        return None


def accepted(scratch: ScratchCopy, inputs: Inputs, dims: tuple[Dim, ...]) -> Variant | None:
    """Return the variant with its outcome; None if the model rejects these inputs. A warning is no rejection."""
    try:
        with without_warnings():
            return Variant(inputs, dims, reference_runs.run_eval(scratch.copy(), inputs))
    except Exception:  # noqa: BLE001 -- a model may reject a size with any exception
        return None


def groups_of(inputs: Inputs) -> dict[int, tuple[Dim, ...]]:
    """Return the input dims grouped by size, without batch dims and empty dims."""
    found = dict[int, tuple[Dim, ...]]()
    for position, leaf in enumerate(inputs.leaves):
        if isinstance(leaf, Tensor):
            batch = inputs.batch_dim(leaf)
            for dim in (d for d in range(leaf.dim()) if d != batch):
                found[leaf.shape[dim]] = (*found.get(leaf.shape[dim], ()), (position, dim))
    return {size: dims for size, dims in found.items() if size > 0}


def adjacent_sizes(size: int) -> list[int]:
    """Return the sizes directly above and below `size`."""
    return [n for n in (size + 1, size - 1) if n > 0]


def _distant_sizes(size: int) -> list[int]:
    """Return sizes further away, which strided networks are likely to accept and which change their smallest maps."""
    step = min(size & -size, MAX_STEP)
    sizes = (size + step, 2 * size, size - step, size // 2)
    return [n for n in dict.fromkeys(sizes) if n > 0 and n not in {size - 1, size, size + 1}]


def resized(inputs: Inputs, dims: tuple[Dim, ...], size: int) -> Inputs:
    """Return the inputs with `size` entries along each of `dims`: truncated, or repeated from the start."""
    order = iter([position for position, leaf in enumerate(inputs.leaves) if isinstance(leaf, Tensor)])

    def change(tensor: Tensor) -> Tensor:
        here = next(order)
        for leaf, dim in dims:
            if leaf == here:
                rows = torch.arange(size, device=tensor.device) % tensor.shape[dim]
                tensor = tensor.index_select(dim, rows)
        return tensor

    return inputs.map(change)


def leaf_names(model: nn.Module, inputs: Inputs) -> list[str]:
    """Return the user's name of each input leaf, such as `x` or `batch['mask']`."""
    top = inputs.names(model.forward)
    names = list[str]()
    for name, value in zip(top, (*inputs.args, *inputs.kwargs.values()), strict=True):
        names += [f"{name}{pytree.keystr(path)}" for path, _ in pytree.tree_flatten_with_path(value)[0]]
    return names
