"""Stochastic depth, which several libraries implement as a module without parameters.

    y = x * m / (1 - p),    m ~ Bernoulli(1 - p) per sample (or per batch), in train mode; y = x in eval mode

A module is recognized by behavior: it must compute this in both modes, however it draws m.
"""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from typing_extensions import override

from fxsurgery.seeding import seeded

_SAMPLES, _RUNS = 500, 100


class StochasticDepth(nn.Module):
    """Randomly drop the input per sample (`mode="row"`) or for the whole batch (`mode="batch"`)."""

    def __init__(self, p: float, mode: str = "row") -> None:
        super().__init__()
        self.p = p
        self.mode = mode

    @override
    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        size = [x.shape[0] if self.mode == "row" else 1] + [1] * (x.dim() - 1)
        factors_per_sample = torch.empty(size, dtype=x.dtype, device=x.device).bernoulli_(1.0 - self.p)
        return x * factors_per_sample.div_(1.0 - self.p) if self.p < 1.0 else x * factors_per_sample

    @override
    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode!r}"


def depth_of(module: nn.Module) -> StochasticDepth | None:
    """Return a `StochasticDepth` equivalent to `module`; None if `module` is something else."""
    if isinstance(module, StochasticDepth):
        return module
    named = any(word in type(module).__name__.lower() for word in ("droppath", "stochasticdepth", "drop_path"))
    if not named or next(module.children(), None) or module.state_dict() or _has_hooks(module):
        return None
    return next((reference for reference in _candidates(module) if _agree(module, reference)), None)


def _has_hooks(module: nn.Module) -> bool:
    return "forward" in vars(module) or any(v for n, v in vars(module).items() if n.endswith("_hooks"))


def _candidates(module: nn.Module) -> Iterator[StochasticDepth]:
    found = next((getattr(module, n) for n in ("drop_prob", "p", "drop_path") if hasattr(module, n)), None)
    if found is None or isinstance(found, (int, float)):
        for mode in ("row", "batch"):
            yield StochasticDepth(float(found or 0.0), mode)


def _agree(module: nn.Module, reference: StochasticDepth) -> bool:
    """Return True if every sample is either 0 or scaled correctly, and the fraction of zeros is plausible."""
    x = torch.linspace(0.5, 2.0, _SAMPLES * 4, dtype=torch.float64).reshape(_SAMPLES, 2, 2)
    module = copy.deepcopy(module)
    with seeded(0, x.device), torch.no_grad():
        eval_output, runs = (
            module.eval()(x),
            [module.train()(x) for _ in range(1 if reference.mode == "row" else _RUNS)],
        )
    if not torch.equal(eval_output, x) or any(run.shape != x.shape for run in runs):
        return False
    factors = torch.stack([run / x for run in runs]).flatten(2)
    dim = 2 if reference.mode == "row" else (1, 2)
    factors_per_sample = factors.amax(dim)
    scale = 1 / (1 - reference.p) if reference.p < 1 else 1.0
    exact = torch.allclose(factors_per_sample, factors.amin(dim)) and torch.allclose(
        factors_per_sample, torch.where(factors_per_sample > 0, scale, 0.0).double()
    )
    spread = math.sqrt(reference.p * (1 - reference.p) / factors_per_sample.numel())
    return exact and abs((factors_per_sample > 0).double().mean().item() - (1 - reference.p)) <= 5 * spread
