"""This machine: ONNX Runtime in this process."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from fxsurgery.deploy.interleave import Plan
from fxsurgery.deploy.latency import LatencyReport, measure
from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.session import CPU
from fxsurgery.errors import DeviceError
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
            DeviceError: there is no model, an option is unknown or out of range.
            ExportError: a file cannot be loaded or run.
        """
        return measure(models, inputs, self.plan(**options))

    def plan(self, **options: Any) -> Plan:  # noqa: ANN401
        """The measurement that these options ask for.

        Raises:
            DeviceError: an option is unknown or out of range.
        """
        known = [f.name for f in fields(Plan) if f.name != "provider"]
        if unknown := [name for name in options if name not in known]:
            raise DeviceError(f"a measurement takes no {unknown[0]}=; its options are {', '.join(known)}; leave it out")
        return Plan(provider=self.provider, **options)
