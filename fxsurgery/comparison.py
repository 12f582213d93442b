"""Differences between outputs, and the largest difference that counts as rounding."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""Largest difference that counts as rounding, relative to the largest absolute reference value."""

_PART = 2**20
"""Number of entries that are compared at a time."""


def largest_error(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> tuple[float, float]:
    """Return the largest relative error of several outputs, and the largest one that counts as rounding."""
    measured = max(map(relative_error, got, wanted), default=0.0)
    return measured, max((TOLERANCE.get(o.dtype, 0.0) for o in wanted), default=0.0)


def relative_error(got: Tensor, wanted: Tensor) -> float:
    """Return the largest absolute difference divided by the largest wanted value; infinite if the shapes differ."""
    return absolute_error(got, wanted) / max(magnitude(wanted), 1e-12)


def absolute_error(got: Tensor, wanted: Tensor) -> float:
    """Return the largest absolute difference, where NaN equals NaN; infinite if the shapes differ."""
    if got.shape != wanted.shape:
        return torch.inf
    worst = 0.0
    for a, b in zip(_in_parts(got), _in_parts(wanted), strict=True):
        largest = float((a - b).abs().max())
        if not math.isfinite(largest):  # a NaN or an infinity, which may be wanted
            off = torch.where((a == b) | (a.isnan() & b.isnan()), 0.0, (a - b).abs())
            largest = float(off.nan_to_num(nan=torch.inf, posinf=torch.inf).max())
        worst = max(worst, largest)
    return worst


def magnitude(tensor: Tensor) -> float:
    """Return the largest finite absolute value of a tensor; 0 if it has none."""
    return max(map(_magnitude, _in_parts(tensor)), default=0.0)


def _magnitude(part: Tensor) -> float:
    largest = float(part.abs().max())
    return largest if math.isfinite(largest) else float(part.nan_to_num(0.0, 0.0, 0.0).abs().max())


def _in_parts(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the entries in float64, in parts of bounded size, so that working memory stays small."""
    for part in torch.split(tensor.detach().flatten(), _PART) if tensor.numel() else ():
        yield part.double()
