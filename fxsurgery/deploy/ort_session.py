"""ONNX Runtime sessions: load a file, run it on tensors."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxsurgery.errors import DeviceError, ExportError, reason_of
from fxsurgery.surroundings import without_warnings

if TYPE_CHECKING:
    import onnxruntime

CPU = "CPUExecutionProvider"


def open_session(path: Path, threads: int = 1, provider: str = CPU) -> "onnxruntime.InferenceSession":
    """Open a session whose threads do not spin between runs, so that interleaved sessions do not disturb each other.

    Raises:
        DeviceError: ONNX Runtime would run on another provider than the one asked for.
        ExportError: the file cannot be loaded.
    """
    if not path.is_file():
        raise ExportError(f"there is no file {path}; name one that was exported")
    import onnxruntime  # noqa: PLC0415 -- slow to import

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # failures are raised, so they need not be logged as well
    try:
        with without_warnings():
            session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime's errors share no public base
        raise ExportError(
            f"ONNX Runtime cannot load {path}: {reason_of(error)}; export the model again with this version"
        ) from error
    if provider not in (found := session.get_providers()):
        raise DeviceError(
            f"ONNX Runtime runs {path.name} on {', '.join(found)}, not on {provider}; install the build of it that "
            "has it, or choose another target"
        )
    return session


def feed_of(session: "onnxruntime.InferenceSession", inputs: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """Return the arrays to run a session on, by name; by position if the file has other names than the tensors.

    An exporter may drop what the model does not use.

    Raises:
        ExportError: the file takes other inputs.
    """
    names = [i.name for i in session.get_inputs()]
    if not set(names) <= set(inputs):
        if len(names) != len(inputs):
            given = f"{len(inputs)} were given ({', '.join(inputs)})"
            raise ExportError(f"the file takes {len(names)} inputs ({', '.join(names)}); {given}; pass one for each")
        inputs = dict(zip(names, inputs.values(), strict=True))
    try:
        return {name: inputs[name].detach().cpu().numpy() for name in names}
    except TypeError as error:
        raise ExportError(
            f"an input has a type that ONNX Runtime's arrays lack: {reason_of(error)}; pass inputs of a float, "
            "integer or boolean type"
        ) from error


def run_session(session: "onnxruntime.InferenceSession", inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """Run a session on named tensors.

    Raises:
        ExportError: it does not run.
    """
    feed = feed_of(session, inputs)
    try:
        return [torch.from_numpy(o) for o in session.run(None, feed)]
    except Exception as error:
        raise ExportError(
            f"ONNX Runtime cannot run the model: {reason_of(error)}; pass inputs of the shapes that it was exported for"
        ) from error
