"""Which versions of the ONNX operator set this installation can write and run."""

import functools

from fxsurgery.argument_names import assigned, named
from fxsurgery.errors import ExportError

_IR_VERSION = 8
"""Version of the file format that every ONNX Runtime of the last years reads."""


def require_opset(opset: int | None, exporter: str, *, runs: bool) -> None:
    """Refuse an operator set that no exporter writes, or that ONNX Runtime would not load.

    Args:
        opset: the version; `None` is the exporter's own choice.
        exporter: `"auto"`, `"dynamo"` or `"legacy"`.
        runs: whether the file will be run through ONNX Runtime.

    Raises:
        ExportError: the message has the range that is supported.
    """
    if opset is None:
        return
    oldest, newest_legacy = _legacy_opsets()
    newest = newest_runnable() if runs else newest_known()
    if exporter == "legacy":
        newest = min(newest, newest_legacy)
    if not oldest <= opset <= newest:
        which = "" if exporter == "auto" else f" with {assigned('exporter', exporter)}"
        raise ExportError(
            f"{assigned('opset', opset)} is not supported{which}; pass one from {oldest} to {newest}, or leave it out"
        ).at("opset")


def newest_known() -> int:
    """Return the newest operator set that the installed onnx knows."""
    import onnx  # noqa: PLC0415 -- slow to import

    return int(onnx.defs.onnx_opset_version())


@functools.cache
def newest_runnable() -> int:
    """Return the newest operator set that the installed ONNX Runtime loads, found by loading a graph of one node."""
    from onnx import TensorProto, helper  # noqa: PLC0415 -- slow to import

    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", value[:1], value[1:])
    for version in range(newest_known(), 1, -1):
        opset = [helper.make_opsetid("", version)]
        if _loads(helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION).SerializeToString()):
            return version
    raise ExportError(
        f"{named('opset')} cannot be checked: ONNX Runtime loads no graph of any version; install onnxruntime again"
    )


def _loads(file: bytes) -> bool:
    import onnxruntime  # noqa: PLC0415 -- slow to import

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001 -- its errors share no public base; a refusal is the answer
        return False
    return True


def _legacy_opsets() -> tuple[int, int]:
    """Return the oldest and the newest operator set of PyTorch's older exporter."""
    from torch.onnx import _constants  # noqa: PLC0415 -- slow to import, and not public

    return int(_constants.ONNX_MIN_OPSET), int(_constants.ONNX_MAX_OPSET)
