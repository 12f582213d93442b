"""The protocol of metrics that accumulate over batches."""

from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Accumulating(Protocol):
    """A metric that is not a mean over batches: F1, average precision, perplexity; any metric of torchmetrics."""

    def update(self, output: Any, target: Any, /) -> object:  # noqa: ANN401
        """Add a batch."""

    def compute(self) -> Any:  # noqa: ANN401
        """Return the value over all batches: a number, or several by name."""
