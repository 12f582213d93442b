"""Detection of models that draw random numbers in `forward`, with which no file can be compared.

The model is run several times on the same inputs, each time from another global random state. Only differences larger
than those of a correct file count.
"""

import pickle
import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fxsurgery.argument_names import assigned
from fxsurgery.comparison import TOLERANCE, relative_error
from fxsurgery.errors import ExportError
from fxsurgery.seeding import reseed, seeded

RUNS = 16
"""Number of runs of a model that draws: a layer dropped in one run of five is found with 97 % probability."""
CPU = torch.device("cpu")


def require_repeatable(run: Callable[[], list[Tensor]]) -> None:
    """Refuse a model whose output on the same inputs differs from run to run.

    Args:
        run: runs the model on the CPU, in eval mode, and returns its output tensors.

    Raises:
        ExportError: two runs differ.
    """
    if error := repeat_gap(run):
        raise ExportError(
            f"two runs of the model itself on the same inputs differ by {error:.1e}, relative to the largest value of "
            "an output, so no file can be compared with it: its forward draws random numbers, or changes its state. "
            "Make its eval mode deterministic (no dropout with training=True; the mean, not a sample), or export it "
            f"unchecked with {assigned('check', value=False)}"
        )


def repeat_gap(run: Callable[[], list[Tensor]]) -> float:
    """Return the largest difference (`output_gap`) between runs on the same inputs; 0 if it is only rounding.

    The global random states are restored.
    """
    with seeded(0, CPU):
        before = _states()
        first = [output.clone() for output in run()]
        # Rare draws, such as a layer that is seldom dropped, take several runs to show.
        runs = RUNS if _states() != before else 2
        for seed in range(1, runs):
            reseed(seed, CPU)
            if gap := _difference(run(), first):
                return gap
    return 0.0


def output_gap(got: Tensor, wanted: Tensor) -> float:
    """Return the difference of two outputs relative to the magnitude of the second, however small that is.

    For integers and booleans, it is the fraction of elements that differ.
    """
    if not wanted.is_floating_point():
        return float((got != wanted).double().mean()) if wanted.numel() else 0.0
    finite = wanted.double().nan_to_num(0.0, 0.0, 0.0).abs()
    scale = finite.max() if finite.numel() and finite.any() else torch.ones(())
    return relative_error(got.double() / scale, wanted.double() / scale)


def _states() -> tuple[object, ...]:
    """Return the global random states that a model may draw from."""
    numpy_state = pickle.dumps(np.random.get_state(legacy=False))  # noqa: NPY002 -- what a model may draw from
    return torch.get_rng_state().numpy().tobytes(), random.getstate(), numpy_state


def _difference(outputs: list[Tensor], first: list[Tensor]) -> float:
    if [x.shape for x in outputs] != [x.shape for x in first]:
        return float("inf")
    gaps = ((output_gap(a, b), TOLERANCE.get(b.dtype, 0.0)) for a, b in zip(outputs, first, strict=True))
    return max((gap for gap, rounding in gaps if gap > rounding), default=0.0)
