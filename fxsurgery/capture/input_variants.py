"""Example inputs with other values or another batch size, for runs that must not depend on either."""

import torch
from torch import Tensor

from fxsurgery.inputs import Inputs

SEED = 20_011


def noisy(inputs: Inputs) -> Inputs:
    """Return the inputs with seeded noise added to floating-point tensors; other tensors are shuffled."""
    generator = torch.Generator().manual_seed(SEED)
    return inputs.map(lambda x: _noisy(x, generator) if x.is_floating_point() else _shuffled(x, inputs, generator))


def redrawn(inputs: Inputs) -> Inputs:
    """Return random inputs with the mean and standard deviation of each tensor; non-floating tensors are shuffled."""
    generator = torch.Generator().manual_seed(SEED)
    return inputs.map(lambda x: _redrawn(x, generator) if x.is_floating_point() else _shuffled(x, inputs, generator))


def doubled(inputs: Inputs) -> Inputs:
    """Return twice the batch: the inputs followed by noisy ones, where they have a batch dim."""
    if inputs.batch and not inputs.is_divisible:
        return inputs.resized(2 * inputs.batch)
    return inputs.joined(noisy(inputs))


def _noisy(x: Tensor, generator: torch.Generator) -> Tensor:
    spread = float(x.double().std(correction=0)) if x.numel() else 0.0
    noise = torch.randn(x.shape, generator=generator).to(x)
    return x + noise * (0.3 * spread or 1.0)


def _redrawn(x: Tensor, generator: torch.Generator) -> Tensor:
    values = x.double()
    noise = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.device)
    return (values.mean() + noise * (values.std(correction=0) or 1.0)).to(x) if x.numel() else x


def _shuffled(x: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
    if inputs.holds_offsets(x):
        return x  # offsets in another order would be invalid
    order = torch.randperm(x.numel(), generator=generator).to(x.device)
    return x.flatten()[order].reshape(x.shape)
