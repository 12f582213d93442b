"""Where a model can be measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import onnxruntime

from fxsurgery.deploy.latency import LatencyReport
from fxsurgery.deploy.onnx_model import OnnxModel
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
        """What a user calls it."""

    def compare(
        self,
        models: Mapping[str, Path | OnnxModel],
        inputs: Inputs,
        **options: Any,  # noqa: ANN401
    ) -> LatencyReport:
        """Measure models side by side."""

    def plan(self, **options: Any) -> object:  # noqa: ANN401
        """Refuse options that a measurement cannot have, before anything is exported for it."""


@checked(DeviceError)
def resolve_target(spec: str) -> Target:
    """The target of that name.

    Raises:
        DeviceError: there is none, or it is not on this machine; it says which there are.
    """
    if spec in {"local", "cpu"}:
        return Local()
    if spec == "cuda":
        if CUDA not in (found := onnxruntime.get_available_providers()):
            raise DeviceError(f"'cuda' needs ONNX Runtime's {CUDA}; this installation has {', '.join(found)}")
        return Local("cuda", CUDA)
    if spec.startswith(REMOTE):
        raise DeviceError(f"{spec!r}: this version has no remote targets; there are: {KNOWN}")
    raise DeviceError(f"there is no target {spec!r}; there are: {KNOWN}")


__all__ = ["Local", "Target", "resolve_target"]
