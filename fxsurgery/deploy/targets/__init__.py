"""Targets: devices on which models are measured."""

from typing import Any, Protocol

from fxsurgery.deploy.interleave import Measure, Models
from fxsurgery.deploy.latency_report import LatencyReport, report_of
from fxsurgery.deploy.measurement import Measurement
from fxsurgery.deploy.targets.local import Local
from fxsurgery.errors import DeviceError
from fxsurgery.inputs import Inputs
from fxsurgery.option_types import checked

CUDA = "CUDAExecutionProvider"
KNOWN = "'local' or 'cpu' (this machine's CPU), 'cuda' (its GPU, with onnxruntime-gpu)"
REMOTE = ("http:", "https:", "adb:")


class Target(Protocol):
    """A device that runs ONNX models."""

    @property
    def name(self) -> str:
        """Name of the target."""

    def measure(self, models: Models, inputs: Inputs, step: Measure) -> Measurement:
        """Measure models side by side; return plain numbers."""

    def plan(self, **options: Any) -> Measure:  # noqa: ANN401
        """Return the measurement with these options; refuse invalid options before anything is exported."""


def compare_on(target: Target, models: Models, inputs: Inputs, **options: Any) -> LatencyReport:  # noqa: ANN401
    """Measure models side by side on a target, with the options of `fxsurgery.deploy.compare_latency`.

    Raises:
        DeviceError: there is no model, an option is unknown or out of range, or the target cannot run them.
        ExportError: a file cannot be loaded or run.
    """
    return report_of(target.measure(models, inputs, target.plan(**options)))


@checked(DeviceError)
def resolve_target(spec: str) -> Target:
    """Return the target with that name.

    Raises:
        DeviceError: there is none, or it is not on this machine; it says which there are.
    """
    if spec in {"local", "cpu"}:
        return Local()
    if spec == "cuda":
        import onnxruntime  # noqa: PLC0415 -- slow to import

        if CUDA not in (found := onnxruntime.get_available_providers()):
            raise DeviceError(f"'cuda' needs ONNX Runtime's {CUDA}; this installation has {', '.join(found)}")
        return Local("cuda", CUDA)
    if spec.startswith(REMOTE):
        raise DeviceError(f"{spec!r}: this version has no remote targets; there are: {KNOWN}")
    raise DeviceError(f"there is no target {spec!r}; there are: {KNOWN}")


__all__ = ["Local", "Target", "compare_on", "resolve_target"]
