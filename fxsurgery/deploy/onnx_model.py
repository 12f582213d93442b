"""An exported model, and how well it agrees with PyTorch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from fxsurgery.printable import lines, printable


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


@dataclass(frozen=True, repr=False)
class OnnxModel:
    """An exported ONNX file; `print` shows its inputs, their shapes, and how well it agrees with PyTorch."""

    path: Path
    opset: int
    """Version of the operator set."""
    exporter: str
    """Exporter that wrote the file: `"dynamo"` or `"legacy"`."""
    bytes: int
    sha256: str
    inputs: tuple[str, ...]
    """Name of each tensor of the example inputs, in order; the file may lack inputs that the model does not use."""
    shapes: tuple[tuple[int | str, ...], ...]
    """Shape of each of `inputs`: `"batch"` for a size that is free, a number for one that is fixed."""
    outputs: tuple[str, ...]
    parity: Parity | None
    """Comparison with PyTorch; `None` if it was disabled."""
    fallback_reason: str | None = None
    """Why the first exporter failed, if another one wrote the file."""

    @override
    def __repr__(self) -> str:
        return printable(f"<OnnxModel {self.path}: opset {self.opset}, inputs {', '.join(self.inputs)}>")

    @override
    def __str__(self) -> str:
        return lines(self._lines())

    @property
    def agreement(self) -> str:
        """How well the file agrees with PyTorch, as text."""
        if self.parity is None:
            return "not checked"
        sizes = " and ".join(map(str, self.parity.batch_sizes))
        kept = f", on the values given of {', '.join(self.parity.kept_inputs)}" if self.parity.kept_inputs else ""
        return f"agrees with PyTorch to {self.parity.error:.1e} of the outputs' size, at batch {sizes}{kept}"

    def _lines(self) -> Iterator[str]:
        yield f"{self.path}: {self.bytes:,} bytes, opset {self.opset}, written by the {self.exporter} exporter"
        for name, shape in zip(self.inputs, self.shapes, strict=True):
            yield f"  input {name}: ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        yield f"  output{'' if len(self.outputs) == 1 else 's'} {', '.join(self.outputs)}"
        others = "sizes other than the batch" if any("batch" in shape for shape in self.shapes) else "all sizes"
        yield f"{others} are fixed at those of the example inputs"
        yield self.agreement
