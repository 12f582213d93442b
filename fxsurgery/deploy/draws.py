"""Other inputs of the examples' kind: what the batch is, and seeded draws of any batch size."""

import torch
from torch import Tensor


def batch_size(example_inputs: tuple[Tensor, ...]) -> int:
    """The length of the first input along dim 0; 1 where all are scalars."""
    return next((len(x) for x in example_inputs if x.dim()), 1)


def is_batched(example: Tensor, size: int) -> bool:
    """Whether dim 0 of an input is the batch: one as long as `size`."""
    return bool(example.dim()) and len(example) == size


def seeded(example_inputs: tuple[Tensor, ...], size: int, seed: int) -> tuple[Tensor, ...]:
    """Inputs shaped like the examples, with `size` samples.

    Floats are the examples with noise, kept within their range, so that a model that takes a root does not see
    negative numbers. Integers and booleans are the examples' own values dealt anew: no index leaves a vocabulary.
    """
    own = batch_size(example_inputs)
    generator = torch.Generator().manual_seed(seed)
    return tuple(_like(x, size if is_batched(x, own) else None, generator) for x in example_inputs)


def is_stuck(example: Tensor) -> bool:
    """Whether `seeded` cannot vary an input: integers that are all the same."""
    return not example.is_floating_point() and bool((example == example.flatten()[:1]).all())


def _like(example: Tensor, size: int | None, generator: torch.Generator) -> Tensor:
    if not example.dim():
        return example.clone()
    rows = example.clone() if size is None else example[torch.arange(size) % len(example)].clone()
    if not example.is_floating_point():
        return rows.flatten()[torch.randperm(rows.numel(), generator=generator)].reshape(rows.shape)
    noise = torch.randn(rows.shape, generator=generator)
    if not example.numel() or example.min() == example.max():
        return rows + noise.to(rows.dtype)
    noisy = rows.float() + noise * example.float().std(correction=0)
    return noisy.to(rows.dtype).clamp(example.min(), example.max())
