"""Other inputs of the examples' kind: seeded draws of any batch size."""

import torch
from torch import Tensor

from fxsurgery.inputs import Inputs


def seeded(examples: Inputs, samples: int | None, seed: int) -> Inputs:
    """Inputs shaped like the examples, with so many samples; as many as the examples for `None`.

    Floats are the examples with noise, kept within their range, so that a model that takes a root does not see
    negative numbers. Integers are the examples' own values dealt anew: no index leaves a vocabulary. Masks are dealt
    along their rows: none that lets something through is closed.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = examples if samples is None else examples.resized(samples)
    return rows.map(lambda x: _like(x, generator))


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
    """The same values in other places; in a mask, of zeros and ones, each row keeps its own."""
    is_mask = example.dim() > 1 and bool(((example == 0) | (example == 1)).all())
    order = torch.rand(example.shape if is_mask else (example.numel(),), generator=generator).argsort(-1)
    values = example if is_mask else example.flatten()
    return values.gather(-1, order).reshape(example.shape)
