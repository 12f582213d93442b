"""Where a model can be measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fxsurgery.deploy.latency import LatencyReport
from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.targets.local import Local
from fxsurgery.errors import DeviceError


class Target(Protocol):
    """A device that runs ONNX models."""

    @property
    def name(self) -> str:
        """What a user calls it."""

    def compare(
        self, models: Mapping[str, Path | OnnxModel], inputs: tuple[Tensor, ...], **options: float
    ) -> LatencyReport:
        """Measure models side by side."""


def resolve_target(spec: str) -> Target:
    """The target of that name.

    Raises:
        DeviceError: there is none; it says which there are.
    """
    if spec in {"local", "cpu"}:
        return Local()
    if spec.startswith(("http://", "https://", "adb:")):
        raise DeviceError(f"{spec!r}: remote devices cannot be measured in this version; there is: 'local'")
    raise DeviceError(f"there is no target {spec!r}; there is: 'local' (this machine's CPU, through ONNX Runtime)")


__all__ = ["Local", "Target", "resolve_target"]
