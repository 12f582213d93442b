"""An exported model, and how well it agrees with PyTorch."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Parity:
    """Difference between ONNX Runtime and PyTorch."""

    error: float
    """Largest of `errors`."""
    errors: tuple[float, ...]
    """For each output, the largest absolute difference divided by the largest absolute PyTorch value, over all batch
    sizes. For integers and booleans, the fraction of elements that differ."""
    spread: float
    """Variation of the output that varies least with the input, on the same scale; constant outputs are left out. An
    error far below this shows a faithful export; a larger error shows nothing."""
    batch_sizes: tuple[int, ...]
    enlivened: bool = False
    """Whether a twin with randomized all-zero weights was checked as well, because outputs of the model itself, or
    parts of it, did not depend on the input."""
    constant_outputs: tuple[int, ...] = ()
    """Indices of outputs that do not vary with the input, nor do the twin's: only their values are checked."""
    kept_inputs: tuple[str, ...] = ()
    """Inputs that were checked only on the example values, such as offsets, because the model does not accept random
    ones. Every other input was checked on other values as well."""


@dataclass(frozen=True)
class OnnxModel:
    """An exported ONNX file."""

    path: Path
    opset: int
    """Version of the operator set."""
    exporter: str
    """Exporter that wrote the file: `"dynamo"` or `"legacy"`."""
    bytes: int
    sha256: str
    inputs: tuple[str, ...]
    """Name of each tensor of the example inputs, in order; the file may lack inputs that the model does not use."""
    outputs: tuple[str, ...]
    parity: Parity | None
    """Comparison with PyTorch; `None` if it was disabled."""
    fallback_reason: str | None = None
    """Why the first exporter failed, if another one wrote the file."""
