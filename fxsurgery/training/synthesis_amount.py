"""The number of synthetic inputs that a model gets, and the work that they take."""

from dataclasses import dataclass
from typing import Self

from fxsurgery.calls import checked_construction

EASY_MACS = 5e7
"""Multiply-accumulates per sample up to which a model gets the full amount."""


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Amount:
    """Number of synthetic samples, and the work that each takes."""

    samples: int = 512
    validation: int = 128
    """Number of held-out samples, made in the same way from other noise."""
    steps: int = 60
    """Optimizer steps per batch."""
    batch_size: int = 128
    """Samples that are optimized together."""
    learning_rate: float = 0.3
    spread: float = 0.0
    """Weight of the entropy of the mean prediction; for class scores only."""
    smoothness: float = 0.0
    """Weight of the mean squared difference of neighboring pixels."""

    @classmethod
    def affordable(cls, macs: float) -> Self:
        """Return the amount for a model with this number of multiply-accumulates per sample.

        All of it up to 50 M; above, in smaller batches, half the samples for a factor of 16, down to 128, and half the
        steps for one of 1,000. So a small net gets 512 + 128 samples of 60 steps, about the work of 400 training steps
        on batches of 64 (a step here has no gradient of weights, two thirds of the work); ResNet-50 gets 128 + 64
        samples of 39 steps, the work of 80.
        """
        heavy = max(macs / EASY_MACS, 1.0)
        samples = max(128, int(512 / heavy**0.25) // 64 * 64)
        return cls(
            samples=samples, validation=max(64, samples // 4), steps=max(20, round(60 / heavy**0.1)),
            batch_size=128 if macs <= EASY_MACS else 64,
        )  # fmt: skip
