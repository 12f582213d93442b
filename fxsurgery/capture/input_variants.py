"""Other values and numbers of samples for example inputs, for runs that must not depend on those."""

import torch
from torch import Tensor

from fxsurgery.inputs import Inputs

SEED = 20_011


def noisy(inputs: Inputs) -> Inputs:
    """The inputs, with seeded noise on the floating-point ones; the values of the others are dealt anew."""
    generator = torch.Generator().manual_seed(SEED)
    return inputs.map(lambda x: _noisy(x, generator) if x.is_floating_point() else _dealt(x, inputs, generator))


def redrawn(inputs: Inputs) -> Inputs:
    """Other inputs, each with the mean and the spread that it has; the values of the integer ones are dealt anew."""
    generator = torch.Generator().manual_seed(SEED)
    return inputs.map(lambda x: _redrawn(x, generator) if x.is_floating_point() else _dealt(x, inputs, generator))


def doubled(inputs: Inputs) -> Inputs:
    """Twice the batch: the inputs and noisy ones after them, where they have a batch dimension."""
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


def _dealt(x: Tensor, inputs: Inputs, generator: torch.Generator) -> Tensor:
    if inputs.holds_offsets(x):
        return x  # in another order they are none
    order = torch.randperm(x.numel(), generator=generator).to(x.device)
    return x.flatten()[order].reshape(x.shape)
