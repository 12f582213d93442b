"""This machine: ONNX Runtime in this process."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxsurgery.deploy.interleave import Plan
from fxsurgery.deploy.latency import LatencyReport, measure
from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.session import CPU
from fxsurgery.inputs import Inputs


@dataclass(frozen=True)
class Local:
    """One of this machine's processors, by ONNX Runtime's name for it."""

    name: str = "local"
    provider: str = CPU

    def compare(
        self,
        models: Mapping[str, Path | OnnxModel],
        inputs: Inputs,
        **options: Any,  # noqa: ANN401
    ) -> LatencyReport:
        """Measure models side by side; options as of `fxsurgery.deploy.compare_latency`.

        Raises:
            DeviceError: there is no model, or an option is out of range.
            ExportError: a file cannot be loaded or run.
        """
        return measure(models, inputs, Plan(provider=self.provider, **options))
