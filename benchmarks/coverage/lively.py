"""Weights that let a wrong removal show: nothing is zero, one or constant that training would not leave so.

Vectors: scales U(0.5, 1.5), the rest 0.1 N(0, 1). Larger tensors keep what their library drew, unless that is
(nearly) constant: about 0, they become 0.1 N(0, 1); else they are multiplied by U(0.5, 1.5). BatchNorm statistics are
those of the activations, disturbed: mean + U(-0.3, 0.3) deviations, variance x U(0.7, 1.4). With statistics drawn
blindly, deep nets no longer answer to their input, and any removal looks right.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fxsurgery.inputs import Inputs

SCALES = ("weight", "gamma", "gain", "scale", "g", "original0", "weight_g", "ls1", "ls2")
NEARLY_ZERO = 2e-2
NEARLY_CONSTANT = 1e-3
LEAST_VARIANCE = 1e-6


@torch.no_grad()
def enliven(model: nn.Module, inputs: Inputs, seed: int) -> nn.Module:
    """Draw `model`'s weights anew, in place, where its initialization left them trivial; return it in eval mode."""
    generator = torch.Generator().manual_seed(seed + 1)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            _redraw(name.rpartition(".")[2], parameter, generator)
    _settle(model.eval(), inputs, generator)
    return model


def _redraw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if parameter.dim() <= 1:
        if name in SCALES or name.startswith("gamma"):
            parameter.copy_(_uniform(parameter, 0.5, 1.5, generator))
        else:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    elif parameter.numel() and float(parameter.abs().max()) < NEARLY_ZERO:
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    elif parameter.numel() > 1 and float(parameter.std()) < NEARLY_CONSTANT:
        parameter.mul_(_uniform(parameter, 0.5, 1.5, generator))


def _settle(model: nn.Module, inputs: Inputs, generator: torch.Generator) -> None:
    """Give each BatchNorm, in the order in which they run, statistics near those of what it is given."""
    statistics = (m for m in model.modules() if isinstance(getattr(m, "running_var", None), Tensor))
    norms = [module for module in statistics if "Norm" in type(module).__name__]
    hooks = [norm.register_forward_pre_hook(_settler(generator)) for norm in norms]
    if hooks:
        two = inputs.map(lambda x: _with_another(x, generator) if inputs.is_batched(x) else x)
        try:
            model(*two.args, **two.kwargs)
        except (RuntimeError, ValueError, AssertionError):  # a list of images has no batch to be one larger
            model(*inputs.clone().args, **inputs.clone().kwargs)
    for hook in hooks:
        hook.remove()


def _settler(generator: torch.Generator) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def settle(norm: nn.Module, given: tuple[Tensor, ...]) -> None:
        x = given[0].transpose(0, 1).flatten(1)
        mean, variance = x.mean(1), x.var(1, correction=0)
        if not float(variance.mean()) > LEAST_VARIANCE:
            variance = (mean**2).clamp_min(LEAST_VARIANCE)
        variance = variance.clamp_min(0.1 * float(variance.mean()))
        norm.running_mean.copy_(mean + _uniform(mean, -0.3, 0.3, generator) * variance.sqrt())
        norm.running_var.copy_(variance * _uniform(variance, 0.7, 1.4, generator))

    return settle


def _with_another(x: Tensor, generator: torch.Generator) -> Tensor:
    """One more sample: without it, what is pooled to a single value a channel has no deviation."""
    another = torch.randn(x[:1].shape, generator=generator) if x.is_floating_point() else x[:1]
    return torch.cat([x, another])


def _uniform(tensor: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(tensor.shape, generator=generator)
