"""The local target: ONNX Runtime in this process."""

from dataclasses import dataclass, fields
from typing import Any

from fxsurgery.deploy.interleave import Measure, Models
from fxsurgery.deploy.measurement import Measurement
from fxsurgery.deploy.ort_session import CPU
from fxsurgery.errors import ArgumentError
from fxsurgery.inputs import Inputs
from fxsurgery.suggestions import hint


@dataclass(frozen=True)
class Local:
    """An execution provider of ONNX Runtime on this machine."""

    name: str = "local"
    provider: str = CPU

    def measure(self, models: Models, inputs: Inputs, step: Measure) -> Measurement:
        """Measure models side by side.

        Raises:
            DeviceError: there is no model, or no such provider.
            ExportError: a file cannot be loaded or run.
        """
        return step.take(models, inputs)

    def plan(self, **options: Any) -> Measure:  # noqa: ANN401
        """Return the measurement with these options.

        Raises:
            ArgumentError: an option does not exist.
            DeviceError: an option is out of range.
        """
        known = [f.name for f in fields(Measure) if f.name != "provider"]
        if unknown := [name for name in options if name not in known]:
            raise ArgumentError(f"a measurement has no option {unknown[0]}=; {hint(unknown[0], known)}").at(unknown[0])
        return Measure(provider=self.provider, **options)
