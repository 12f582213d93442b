"""Differences between two runs of the same operations, relative to what rounding explains."""

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
"""Largest allowed difference between two runs of the same operations, relative to the largest absolute value."""

GRADIENT_FLOOR = 1e-4
"""Gradients below this fraction of the largest are compared on that scale, such as those of a bias before BatchNorm."""

CLEARLY_EQUAL = 0.99
"""A difference below this fraction of the tolerance is accepted without comparing again in float64."""

CHUNK = 1 << 16
"""Number of entries compared at a time; they fit in the cache."""


class Difference(NamedTuple):
    """The largest difference between two runs."""

    excess: float
    """The difference as a multiple of the tolerance; the runs are equal if it is at most 1."""
    where: str


def difference(
    got: ReferenceOutcome, expected: ReferenceOutcome, gradients: Mapping[str, float] | None = None
) -> Difference:
    """Return the largest difference between the outputs and, if those agree, the gradients and buffers.

    Gradients and buffers are compared by the names that both runs have, since an alias is one tensor with two names.

    Args:
        got: the run to judge.
        expected: the reference run.
        gradients: differences of gradients that have already been compared, by name.
    """
    if unpaired := sorted(got.outputs.keys() ^ expected.outputs.keys()):
        return Difference(torch.inf, f"{unpaired[0]} (missing in one of the runs)")
    differences = [Difference(_relative_to_tolerance(got.outputs[k], expected.outputs[k], 0.0), k) for k in got.outputs]
    if any(excess > 1 for excess, _ in differences):
        return max(differences)
    compare = GradientComparison(expected)
    for name, gradient in got.gradients.items():
        compare(name, gradient)
    excesses = compare.excesses | dict(gradients or {})
    differences += [Difference(excess, f"the gradient of {name}") for name, excess in excesses.items()]
    for name in got.buffers.keys() & expected.buffers.keys():
        excess = _relative_to_tolerance(got.buffers[name], expected.buffers[name], 0.0)
        differences.append(Difference(excess, f"the buffer {name} after a step"))
    return max(differences, key=lambda item: item[0])


class GradientComparison:
    """Compares gradients with those of a reference run as they are computed.

    Pass an instance to `run_train` as `TrainStep.on_gradient`.
    """

    def __init__(self, expected: ReferenceOutcome) -> None:
        self._expected = expected.gradients
        self._floor = GRADIENT_FLOOR * max(scales(expected).values(), default=0.0)
        self.excesses = dict[str, float]()
        """Differences by name, as multiples of the tolerance."""

    def __call__(self, name: str, gradient: Tensor | None) -> None:
        """Compare one gradient if the reference run has it too."""
        if name in self._expected:
            self.excesses[name] = _relative_to_tolerance(gradient, self._expected[name], self._floor)


def scales(outcome: ReferenceOutcome) -> Mapping[str, float]:
    """Return the largest absolute value of each gradient by name."""
    return {name: _magnitude(g) for name, g in outcome.gradients.items() if g is not None}


def _relative_to_tolerance(got: object, expected: object, floor: float) -> float:
    if not (isinstance(got, Tensor) and isinstance(expected, Tensor)):
        same = type(got) is type(expected) and repr(got) == repr(expected)
        return 0.0 if same else torch.inf
    if (got.shape, got.dtype, got.requires_grad) != (expected.shape, expected.dtype, expected.requires_grad):
        return torch.inf
    limit = TOLERANCE.get(expected.dtype, 0.0)
    got, expected = _real(got), _real(expected)
    if (
        limit
        and expected.dtype in _PRECISE_DTYPES
        and (excess := _quick_error(got, expected, floor) / limit) <= CLEARLY_EQUAL
    ):
        return excess
    error = absolute_error(got, expected) / max(magnitude(expected), floor, 1e-12)
    return error / limit if limit else (torch.inf if error else 0.0)


_PRECISE_DTYPES = {torch.float32, torch.float64}
"""Dtypes in which subtracting two close numbers loses no precision that matters."""


def _quick_error(got: Tensor, expected: Tensor, floor: float) -> float:
    """Return the relative error, computed in the tensors' own dtype; infinite on overflow or NaN."""
    error = scale = 0.0
    pairs = zip(*(torch.split(x.flatten(), CHUNK) for x in (got, expected)), strict=True) if got.numel() else ()
    for a, b in pairs:
        deviation, size = _largest(a - b), _largest(b)
        if not (math.isfinite(deviation) and math.isfinite(size)):
            return torch.inf
        error, scale = max(error, deviation), max(scale, size)
    return error / max(scale, floor, 1e-12)


def _magnitude(tensor: Tensor) -> float:
    tensor = _real(tensor)
    largest = _largest(tensor) if tensor.dtype in _PRECISE_DTYPES and tensor.numel() else torch.nan
    return largest if math.isfinite(largest) else magnitude(tensor)


def _largest(tensor: Tensor) -> float:
    low, high = torch.aminmax(tensor)
    return max(-float(low), float(high))


def _real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
