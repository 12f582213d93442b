"""Transforms: steps that rewrite an ONNX file in place, each with its own tolerance of the check."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from typing_extensions import override

from fxsurgery.argument_names import keyword
from fxsurgery.calls import checked_construction
from fxsurgery.comparison import TOLERANCE
from fxsurgery.deploy.steps import Transform
from fxsurgery.errors import ExportError, reason_of
from fxsurgery.surroundings import without_warnings


@checked_construction
@dataclass(frozen=True)
class ToFloat16(Transform):
    """Convert weights and arithmetic to float16, which halves the size; inputs and outputs keep their types.

    Values outside the range of float16 are clamped to its largest and smallest values. A model for which that matters
    does not pass the check.

    Example:
        >>> from fxsurgery.deploy import Chain, Check, Export
        >>> str(Chain((Export(), ToFloat16(), Check())))
        'export;to-float16;check'
    """

    name: ClassVar[str] = "to-float16"
    tolerance: ClassVar[float | None] = TOLERANCE[torch.float16]

    @override
    def rewrite(self, path: Path) -> None:
        import onnx  # noqa: PLC0415 -- slow to import
        from onnxruntime.transformers.onnx_model import OnnxModel  # noqa: PLC0415 -- slow to import

        try:
            with without_warnings():
                file = OnnxModel(onnx.load(path))
                file.convert_float_to_float16(use_symbolic_shape_infer=False, keep_io_types=True)
                file.topological_sort()  # the casts of the inputs are put last
            onnx.save(file.model, path)
            onnx.checker.check_model(path)
        except Exception as error:
            raise ExportError(
                f"{self.name}: the file cannot be converted: {reason_of(error)}; leave the step out, or try the other "
                f"{keyword('exporter')}"
            ) from error
