"""How far two runs of the same operations are apart, in units of what rounding explains."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from fxsurgery.capture.reference_runs import ReferenceOutcome
from fxsurgery.comparison import absolute_error, magnitude

TOLERANCE = {
    torch.float64: 1e-10,
    torch.complex128: 1e-10,
    torch.float32: 1e-5,
    torch.complex64: 1e-5,
    torch.float16: 1e-2,
    torch.bfloat16: 2e-2,
}
"""Largest difference between two runs of the same operations, relative to the largest absolute value."""

FLOOR = 1e-4
"""A gradient below this share of the largest one is compared on that scale: a bias before BatchNorm has none."""

CLEAR = 0.99
"""A difference below this share of what is allowed needs no second look in float64."""

PART = 1 << 16
"""Entries that are compared at a time, which stay in the cache."""


class Difference(NamedTuple):
    """The largest difference between two runs."""

    excess: float
    """In units of what is allowed; above 1 they are not equal."""
    where: str


def difference(
    got: ReferenceOutcome, wanted: ReferenceOutcome, gradients: Mapping[str, float] | None = None
) -> Difference:
    """The largest difference between the outputs, and where those agree, the gradients and the buffers.

    Gradients and buffers are compared by the names they have in both: an alias is one tensor of two names. `gradients`
    are the differences of those that were compared already.
    """
    if lone := sorted(got.outputs.keys() ^ wanted.outputs.keys()):
        return Difference(torch.inf, f"{lone[0]} (only one of them has it)")
    found = [Difference(_excess(got.outputs[k], wanted.outputs[k], 0.0), k) for k in got.outputs]
    if any(excess > 1 for excess, _ in found):
        return max(found)
    compare = GradientComparison(wanted)
    for name, gradient in got.gradients.items():
        compare(name, gradient)
    excesses = compare.excesses | dict(gradients or {})
    found += [Difference(excess, f"the gradient of {name}") for name, excess in excesses.items()]
    for name in got.buffers.keys() & wanted.buffers.keys():
        excess = _excess(got.buffers[name], wanted.buffers[name], 0.0)
        found.append(Difference(excess, f"the buffer {name} after a step"))
    return max(found, key=lambda item: item[0])


class GradientComparison:
    """Compares gradients with those of another run as they come; to be handed to `run_train`."""

    def __init__(self, wanted: ReferenceOutcome) -> None:
        self._wanted = wanted.gradients
        self._floor = FLOOR * max(scales(wanted).values(), default=0.0)
        self.excesses = dict[str, float]()
        """By name, in units of what is allowed."""

    def __call__(self, name: str, gradient: Tensor | None) -> None:
        """Compare one, where the other run has it too."""
        if name in self._wanted:
            self.excesses[name] = _excess(gradient, self._wanted[name], self._floor)


def scales(outcome: ReferenceOutcome) -> Mapping[str, float]:
    """The largest absolute value of each gradient."""
    return {name: _magnitude(g) for name, g in outcome.gradients.items() if g is not None}


def _excess(got: object, wanted: object, floor: float) -> float:
    if not (isinstance(got, Tensor) and isinstance(wanted, Tensor)):
        same = type(got) is type(wanted) and repr(got) == repr(wanted)
        return 0.0 if same else torch.inf
    if (got.shape, got.dtype, got.requires_grad) != (wanted.shape, wanted.dtype, wanted.requires_grad):
        return torch.inf
    limit = TOLERANCE.get(wanted.dtype, 0.0)
    got, wanted = _real(got), _real(wanted)
    if limit and wanted.dtype in _WIDE and (excess := _quick_error(got, wanted, floor) / limit) <= CLEAR:
        return excess
    error = absolute_error(got, wanted) / max(magnitude(wanted), floor, 1e-12)
    return error / limit if limit else (torch.inf if error else 0.0)


_WIDE = {torch.float32, torch.float64}
"""Types in which the difference of two close numbers has no rounding to speak of."""


def _quick_error(got: Tensor, wanted: Tensor, floor: float) -> float:
    """The relative error, worked out in the tensors' own type; infinite where that overflows or a number is NaN."""
    error = scale = 0.0
    pairs = zip(*(torch.split(x.flatten(), PART) for x in (got, wanted)), strict=True) if got.numel() else ()
    for a, b in pairs:
        off, size = _largest(a - b), _largest(b)
        if not (math.isfinite(off) and math.isfinite(size)):
            return torch.inf
        error, scale = max(error, off), max(scale, size)
    return error / max(scale, floor, 1e-12)


def _magnitude(tensor: Tensor) -> float:
    tensor = _real(tensor)
    largest = _largest(tensor) if tensor.dtype in _WIDE and tensor.numel() else torch.nan
    return largest if math.isfinite(largest) else magnitude(tensor)


def _largest(tensor: Tensor) -> float:
    low, high = torch.aminmax(tensor)
    return max(-float(low), float(high))


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
