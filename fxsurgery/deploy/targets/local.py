"""This machine's CPU."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fxsurgery.deploy.latency import LatencyReport, compare_latency
from fxsurgery.deploy.onnx_model import OnnxModel


@dataclass(frozen=True)
class Local:
    """ONNX Runtime in this process."""

    name: str = "local"

    def compare(
        self,
        models: Mapping[str, Path | OnnxModel],
        inputs: tuple[Tensor, ...],
        **options: Any,  # noqa: ANN401
    ) -> LatencyReport:
        """Measure models side by side; options as of `fxsurgery.deploy.latency.compare_latency`."""
        return compare_latency(models, inputs, **options)
