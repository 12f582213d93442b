"""Seeded random inputs like the examples, of any batch size."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from fxsurgery.errors import ExportError
from fxsurgery.inputs import Inputs

SEEDS = (0, 1, 2, 3)
"""Seeds of the draws of a check; the model must accept each of them."""


def seeded(examples: Inputs, samples: int | None, seed: int, kept: Collection[int] = ()) -> Inputs:
    """Return random inputs shaped like the examples.

    Floats are the examples with noise, clamped to their range, so that the argument of a square root stays
    non-negative. Integers are drawn from the values of the examples, so that an index stays within its vocabulary.
    Masks are permuted along their rows, so that no row becomes empty.

    Args:
        examples: the example inputs.
        samples: number of samples; `None` for as many as the examples have.
        seed: seed of the draws.
        kept: indices of the tensors whose values stay as they are, such as offsets, whose order matters.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = examples if samples is None else examples.resized(samples)
    drawn = iter([x.clone() if i in kept else _like(x, generator) for i, x in enumerate(rows.tensors)])
    return rows.map(lambda _: next(drawn))


def kept_values(examples: Inputs, run: Callable[[Inputs], Sequence[Tensor]]) -> tuple[int, ...]:
    """Return the indices of integer tensors whose values `seeded` must keep for the model to accept them.

    These are offsets; and, if the model refuses random values of the other integers or returns other shapes for them,
    as few of those as suffice.

    Args:
        examples: the example inputs.
        run: returns the model's outputs; it raises `ExportError` if the model does not accept the inputs.
    """
    offsets = tuple(i for i, found in enumerate(examples.offsets) if found)
    varied = [i for i, x in enumerate(examples.tensors) if not x.is_floating_point() and x.numel() > 1]
    free = [i for i in varied if i not in offsets]
    if not free:
        return offsets
    shapes = [x.shape for x in run(examples)]

    def fits(kept: tuple[int, ...]) -> bool:
        try:
            return all([x.shape for x in run(seeded(examples, None, seed, kept))] == shapes for seed in SEEDS)
        except ExportError:
            return False

    choices = [offsets, *(tuple(sorted((*offsets, i))) for i in free), tuple(sorted((*offsets, *free)))]
    return next(filter(fits, choices), offsets)


def is_stuck(example: Tensor) -> bool:
    """Return True if `seeded` cannot vary an input: integers that are all equal."""
    return not example.is_floating_point() and bool((example == example.flatten()[:1]).all())


def _like(example: Tensor, generator: torch.Generator) -> Tensor:
    if not example.dim() or not example.numel():
        return example.clone()
    if not example.is_floating_point():
        return _dealt(example, generator)
    noise = torch.randn(example.shape, generator=generator)
    finite = example[example.isfinite()].double()
    if not finite.numel() or finite.min() == finite.max():
        return example + noise.to(example.dtype)
    noisy = example.double() + noise * finite.std(correction=0)
    return noisy.clamp(finite.min(), finite.max()).to(example.dtype).where(example.isfinite(), example)


def _dealt(example: Tensor, generator: torch.Generator) -> Tensor:
    """Return values drawn from those of the example, so that their mean varies; rows of a 0/1 mask are permuted."""
    if example.dim() > 1 and bool(((example == 0) | (example == 1)).all()):
        return example.gather(-1, torch.rand(example.shape, generator=generator).argsort(-1))
    return example.flatten()[torch.randint(example.numel(), example.shape, generator=generator)]
