"""Batch dims of the inputs, and the number of samples, inferred from the size of the target."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fxsurgery.inputs import BatchDims, Inputs, dims_of_size, tensors_in

_MOST_DIMS = 3
"""Largest number of dims of an input whose dim 1 may be the batch; inputs with more dims are images."""


def by_target(inputs: Inputs, target: object) -> Inputs:
    """Return the inputs with the dims of the size of the target as batch dims.

    These are dim 0 of the first tensor if part of the target has its size; else dim 0 of another tensor, and dim 1 of
    the time-first tensors beside it; else dim 1 of the first tensor. If no dim has the size of the target, which may
    hold any number of objects, the batch dims are unchanged.
    """
    wanted, tensors = target_sizes(target), inputs.tensors
    if inputs.batch_dims is not None or not wanted or inputs.batch in wanted:
        return inputs
    for size in wanted:
        if size and any(x.dim() and len(x) == size for x in tensors):
            return replace(inputs, batch_dims=with_second(tensors, dims_of_size(tensors, size), size))
    first = next((x for x in tensors if x.dim()), None)
    if first is not None and 2 <= first.dim() <= _MOST_DIMS and first.size(1) == wanted[0] > 0:
        return replace(inputs, batch_dims=dims_of_size(tensors, wanted[0], 1))
    return inputs


def with_second(tensors: Sequence[Tensor], dims: BatchDims, size: int) -> BatchDims:
    """Return the dims, with dim 1 for time-first tensors that have none."""
    return tuple(_second(x, size) if dim is None else dim for x, dim in zip(tensors, dims, strict=True))


def _second(x: Tensor, size: int) -> int | None:
    """Return dim 1 of a time-first sequence of vectors or numbers if it has that size."""
    is_sequence = x.dim() == _MOST_DIMS or (x.dim() == 2 and not x.is_floating_point())
    return 1 if is_sequence and x.size(1) == size else None


def is_ambiguous(inputs: Inputs, target: object) -> bool:
    """Return True if the sizes do not determine the batch dim: two dims of an input, or none, fit the target.

    Images have their batch in dim 0.
    """
    tensors, wanted = [x for x in inputs.tensors if x.dim()], target_sizes(target)
    if not tensors or not wanted or tensors[0].dim() > _MOST_DIMS:
        return False
    is_square = (1 < x.dim() <= _MOST_DIMS and x.size(0) == x.size(1) == inputs.batch for x in tensors)
    return inputs.batch not in wanted or any(is_square)


def sample_count(inputs: Inputs, target: object, output: object = None) -> int:
    """Return the number of samples in a batch: that of the inputs, or of a target whose size only the output has.

    Args:
        inputs: inputs of one batch, with the batch dims as far as they are known.
        target: its target, of any structure.
        output: output of the model; `None` if it has not run.
    """
    wanted, size = target_sizes(target), inputs.batch
    if size is not None and (not wanted or size in wanted):
        return size
    made = next((len(x) for _, x in tensors_in(output) if x.dim()), None)
    if made is not None and made in wanted:
        return made
    return 1 if size is None else size


def target_sizes(target: object) -> list[int]:
    """Return the sizes of the parts of a target along dim 0, in order; a list of dicts has one for each sample."""
    if isinstance(target, list | tuple) and target and all(isinstance(part, Mapping) for part in target):
        return [len(target)]
    return [x.size(0) for _, x in tensors_in(target) if x.dim()]
