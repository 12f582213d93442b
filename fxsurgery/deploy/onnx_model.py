"""An exported model, and how it was checked."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Parity:
    """How far ONNX Runtime and PyTorch are apart."""

    error: float
    """Largest absolute difference over the largest absolute PyTorch value, over all outputs and batch sizes."""
    batch_sizes: tuple[int, ...]
    enlivened: bool
    """Whether the comparison was made on a copy whose all-zero weights were randomised: the model's own outputs
    did not depend on its input, and would have agreed with anything."""


@dataclass(frozen=True)
class OnnxModel:
    """A file that ONNX Runtime and PyTorch agree on."""

    path: Path
    opset: int
    exporter: str
    """`"dynamo"` or `"legacy"`."""
    bytes: int
    sha256: str
    parity: Parity | None
    """`None` where the check was switched off."""
