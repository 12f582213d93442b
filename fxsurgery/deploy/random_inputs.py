"""Other inputs of the examples' kind: seeded draws of any batch size."""

from collections.abc import Callable, Collection, Sequence

import torch
from torch import Tensor

from fxsurgery.errors import ExportError
from fxsurgery.inputs import Inputs

SEEDS = (0, 1, 2, 3)
"""Of the draws that a check makes, each of which the model must take."""


def seeded(examples: Inputs, samples: int | None, seed: int, kept: Collection[int] = ()) -> Inputs:
    """Inputs shaped like the examples, with so many samples; as many as the examples for `None`.

    Floats are the examples with noise, kept within their range, so that a model that takes a root does not see
    negative numbers. Integers are drawn among the examples' own values: no index leaves a vocabulary. Masks are dealt
    along their rows: none that lets something through is closed.

    Args:
        examples: what the model takes.
        samples: how many.
        seed: of the draws.
        kept: the tensors, by their place, whose values stay as they are: offsets, say, which mean nothing in another
            order.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = examples if samples is None else examples.resized(samples)
    drawn = iter([x.clone() if i in kept else _like(x, generator) for i, x in enumerate(rows.tensors)])
    return rows.map(lambda _: next(drawn))


def kept_values(examples: Inputs, run: Callable[[Inputs], Sequence[Tensor]]) -> tuple[int, ...]:
    """The integer tensors, by their place, whose values `seeded` must keep for the model to take them.

    Those are offsets; and where the model refuses other values of the rest, or gives outputs of other shapes for them,
    as few more of these as do.

    Args:
        examples: what the model takes.
        run: gives its outputs; it raises `ExportError` where it does not take the inputs.
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
    """Whether `seeded` cannot vary an input: integers that are all the same."""
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
    """Values drawn among its own, so that their mean varies; in a mask, of zeros and ones, each row keeps its own."""
    if example.dim() > 1 and bool(((example == 0) | (example == 1)).all()):
        return example.gather(-1, torch.rand(example.shape, generator=generator).argsort(-1))
    return example.flatten()[torch.randint(example.numel(), example.shape, generator=generator)]
