"""Weights that let a wrong removal show: nothing is zero, one or constant that training would not leave so.

BatchNorm statistics: mean 0.1 N(0, 1), variance U(0.5, 1.5). Vectors: scales U(0.5, 1.5), the rest 0.1 N(0, 1).
Larger tensors keep what their library drew, unless that is (nearly) constant: then 0.1 N(0, 1).
"""

import torch
from torch import Tensor, nn

SCALES = ("weight", "gamma", "gain", "scale", "g", "original0", "weight_g", "ls1", "ls2")
NEARLY_ZERO = 2e-2
NEARLY_CONSTANT = 1e-3


@torch.no_grad()
def enliven(model: nn.Module, seed: int) -> nn.Module:
    """Draw `model`'s weights anew, in place, where its initialisation left them trivial; return it."""
    generator = torch.Generator().manual_seed(seed + 1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(_around_one(buffer, generator))
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point():
            _redraw(name.rpartition(".")[2], parameter, generator)
    return model


def _redraw(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    if parameter.dim() <= 1:
        if name in SCALES or name.startswith("gamma"):
            parameter.copy_(_around_one(parameter, generator))
        else:
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    elif _is_trivial(parameter):
        parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))


def _is_trivial(parameter: Tensor) -> bool:
    if not parameter.numel():
        return False
    small = float(parameter.abs().max()) < NEARLY_ZERO
    return small or (parameter.numel() > 1 and float(parameter.std()) < NEARLY_CONSTANT)


def _around_one(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return 0.5 + torch.rand(tensor.shape, generator=generator)
