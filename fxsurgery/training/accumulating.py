"""Metrics that are no means over batches."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Accumulating(Protocol):
    """A metric that is no mean over batches: F1, average precision, perplexity; any metric of torchmetrics."""

    def update(self, output: Any, target: Any, /) -> object:  # noqa: ANN401
        """Take a batch into account."""

    def compute(self) -> Any:  # noqa: ANN401
        """What all batches together come to: a number, or several by name."""
