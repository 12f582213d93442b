"""Which dim of each input is the batch, and how many samples there are, as the target tells."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from fxsurgery.inputs import BatchDims, Inputs, dims_of_size, tensors_in

_MOST_DIMS = 3
"""Of an input whose dim 1 is taken for the batch because the target is as long: more are an image's."""


def by_target(inputs: Inputs, target: object) -> Inputs:
    """The inputs with the batch where they are as long as the target is.

    Dim 0 of the first tensor where a part of the target is as long; else dim 0 of another tensor, and dim 1 of those
    that are time first beside it; else dim 1 of the first. Where nothing is as long as the target, which may hold any
    number of things, the batch stays where it was.
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
    """The dims, with dim 1 of those that have none and are time first."""
    return tuple(_second(x, size) if dim is None else dim for x, dim in zip(tensors, dims, strict=True))


def _second(x: Tensor, size: int) -> int | None:
    """Dim 1 of a sequence of vectors or numbers, time first, where it is of that size."""
    is_sequence = x.dim() == _MOST_DIMS or (x.dim() == 2 and not x.is_floating_point())
    return 1 if is_sequence and x.size(1) == size else None


def is_ambiguous(inputs: Inputs, target: object) -> bool:
    """Whether the sizes leave open which dim is the batch: two dims of an input, or none, fit the target.

    Images and the like have theirs in dim 0.
    """
    tensors, wanted = [x for x in inputs.tensors if x.dim()], target_sizes(target)
    if not tensors or not wanted or tensors[0].dim() > _MOST_DIMS:
        return False
    is_square = (1 < x.dim() <= _MOST_DIMS and x.size(0) == x.size(1) == inputs.batch for x in tensors)
    return inputs.batch not in wanted or any(is_square)


def sample_count(inputs: Inputs, target: object, output: object = None) -> int:
    """Number of samples in a batch: of the inputs, or of a target that only the output is as long as.

    Args:
        inputs: of one batch, with the batch dims as they are known.
        target: of any structure.
        output: what the model gives; nothing where it has not run.
    """
    wanted, size = target_sizes(target), inputs.batch
    if size is not None and (not wanted or size in wanted):
        return size
    made = next((len(x) for _, x in tensors_in(output) if x.dim()), None)
    if made is not None and made in wanted:
        return made
    return 1 if size is None else size


def target_sizes(target: object) -> list[int]:
    """How long the parts of a target are along dim 0, in order; a list of dicts has one for each sample."""
    if isinstance(target, list | tuple) and target and all(isinstance(part, Mapping) for part in target):
        return [len(target)]
    return [x.size(0) for _, x in tensors_in(target) if x.dim()]
