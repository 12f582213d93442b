"""Timing of single runs of an ONNX model."""

import hashlib
import platform
import time
from pathlib import Path

from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.ort_session import feed_of, open_session
from fxsurgery.deploy.tensor_names import input_names
from fxsurgery.errors import ExportError, reason_of
from fxsurgery.inputs import Inputs


class Stopwatch:
    """A session with its inputs, and the time that it took to create.

    Raises:
        DeviceError: the provider is not there.
        ExportError: the file cannot be loaded or run, or is no longer the one that was exported.
    """

    def __init__(self, model: Path | OnnxModel, inputs: Inputs, threads: int, provider: str) -> None:
        path = model.path if isinstance(model, OnnxModel) else Path(model)
        began = time.perf_counter()
        self._session = open_session(path, threads, provider)
        self.load_ms = (time.perf_counter() - began) * 1e3
        content = path.read_bytes()
        self.bytes, self.sha256 = len(content), hashlib.sha256(content).hexdigest()
        if isinstance(model, OnnxModel) and model.sha256 != self.sha256:
            raise ExportError(f"{path} has changed since it was exported; export it again")
        # One thread: its own time alone, so that other threads of this process count as disturbance.
        self._clock = time.thread_time if threads == 1 else time.process_time
        names = model.inputs if isinstance(model, OnnxModel) else input_names(None, inputs)
        if len(names) != len(inputs.tensors):
            raise ExportError(
                f"{path.name} was exported for {len(names)} inputs; {len(inputs.tensors)} were given; pass one for each"
            )
        self._feed = feed_of(self._session, dict(zip(names, inputs.tensors, strict=True)))
        try:
            self.first_ms = self.run()[0] * 1e3
        except Exception as error:  # onnxruntime's errors share no public base
            raise ExportError(
                f"ONNX Runtime cannot run {path}: {reason_of(error)}; export it again, for inputs of these shapes"
            ) from error

    def close(self) -> None:
        """Release the session; the measured times are kept."""
        del self._session

    def run(self) -> tuple[float, float]:
        """Run one inference; return its wall-clock seconds and its processor seconds."""
        used, began = self._clock(), time.perf_counter()
        self._session.run(None, self._feed)
        wall = time.perf_counter() - began
        return wall, self._clock() - used


def processor() -> str:
    """Return the name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
