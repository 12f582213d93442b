"""An exported model, and how it was checked."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime and PyTorch are apart."""

    error: float
    """The largest of `errors`."""
    errors: tuple[float, ...]
    """For each output, the largest absolute difference over the largest absolute PyTorch value, over all batch
    sizes. For integers and booleans, the share of elements that differ."""
    spread: float
    """How much the outputs vary with the input, on the same scale, for the one that varies least (constant ones
    left out). An error well below this is a faithful export; above it, it could be anything."""
    batch_sizes: tuple[int, ...]
    enlivened: bool = False
    """Whether a twin was checked too, whose all-zero weights were randomized: the model's own outputs, or parts of
    it, did not depend on the input, and would have agreed with anything."""
    constant_outputs: tuple[int, ...] = ()
    """Outputs that vary with no input, the twin's neither: only their values are checked."""
    kept_inputs: tuple[str, ...] = ()
    """Inputs that were checked on the values of the examples alone, since the model does not take others drawn from
    them: offsets, say. Every other input was checked on other values as well."""


@dataclass(frozen=True)
class OnnxModel:
    """A file that ONNX Runtime and PyTorch agree on."""

    path: Path
    opset: int
    """As the file says."""
    exporter: str
    """The one that wrote it: `"dynamo"` or `"legacy"`."""
    bytes: int
    sha256: str
    inputs: tuple[str, ...]
    """A name for each tensor of the example inputs, in order; the file may lack those that the model does not use."""
    outputs: tuple[str, ...]
    parity: Parity | None
    """`None` where the check was switched off."""
    fallback_reason: str | None = None
    """Why it was not the first exporter in line, where that failed."""
