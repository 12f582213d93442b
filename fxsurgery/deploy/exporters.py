"""PyTorch's two ONNX exporters, the current and the older one. The files that they write are checked afterwards."""

import contextlib
import itertools
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import nn

from fxsurgery.argument_names import assigned, keyword
from fxsurgery.deploy.flat_module import Flat
from fxsurgery.deploy.model_source import outputs_of
from fxsurgery.deploy.random_inputs import seeded
from fxsurgery.deploy.tensor_names import rename
from fxsurgery.errors import ExportError
from fxsurgery.inputs import Inputs
from fxsurgery.surroundings import without_warnings

OLDEST_DYNAMO_OPSET = 18
"""Oldest opset of the current exporter. For an older one it often writes this opset, silently."""
LARGEST_BATCH = 1 << 16
"""Upper bound of the batch size that the current exporter requires; its files accept larger batches."""


@dataclass(frozen=True, eq=False)
class Request:
    """Specification of the file that an exporter writes."""

    inputs: Inputs
    opset: int | None
    dynamic_batch: bool
    kept: tuple[int, ...]
    """Indices of the input tensors whose values are kept when inputs are drawn at random."""
    names: tuple[str, ...]
    """Names of the input tensors in the file."""
    names_out: tuple[str, ...]
    """Names of the output tensors in the file."""

    @property
    def drafts(self) -> tuple[list[str], list[str]]:
        """Temporary names, which no exporter uses for an inner value; it may use the final names."""
        return (
            [f"fxsurgery.input.{i}" for i in range(len(self.names))],
            [f"fxsurgery.output.{i}" for i in range(len(self.names_out))],
        )

    @property
    def batch(self) -> int:
        """Batch size of the example inputs."""
        return self.inputs.batch or 1

    @property
    def free(self) -> list[int | None]:
        """Dynamic dim of each input, its batch; `None` for an input without one."""
        return list(self.inputs.dims) if self.dynamic_batch else [None] * len(self.inputs.tensors)


Writer = Callable[[nn.Module, Path, Request], None]
"""Writes a model that was wrapped in `Flat`."""


def write(name: str, model: nn.Module, path: Path, request: Request) -> int:
    """Write a file with one exporter, and return its opset.

    Args:
        name: name of the exporter.
        model: the model in eval mode on the CPU.
        path: where the file is written.
        request: inputs, names and opset of the file.

    Raises:
        ExportError: the exporter does not exist, fails, or writes another opset than requested.
    """
    writer = WRITERS.get(name)
    if writer is None:
        raise ExportError(f"no exporter is named {name!r}; there are: {', '.join(WRITERS)}; choose one")
    import onnx  # noqa: PLC0415 -- slow to import

    try:
        with _quiet(), torch.no_grad():
            writer(Flat(model, request.inputs), path, request)
        file = onnx.load(path, load_external_data=False)
        wanted = (*request.names, *request.names_out)
        rename(file, dict(zip(itertools.chain(*request.drafts), wanted, strict=True)))
        onnx.save(file, path)
        onnx.checker.check_model(path)
    except Exception as error:
        raise ExportError(f"the exporter failed: {_reason(error)}") from error
    found = max((o.version for o in file.opset_import if o.domain in {"", "ai.onnx"}), default=0)
    if request.opset is not None and found != request.opset:
        raise ExportError(
            f"opset {request.opset} was requested, but the exporter wrote {found}; pass "
            f"{assigned('opset', found)}, or try the other {keyword('exporter')}"
        )
    return int(found)


def _dynamo(model: nn.Module, path: Path, request: Request) -> None:
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    # A batch of one would be taken for a constant.
    size = max(2, request.batch)
    examples = seeded(request.inputs, size, 0, request.kept) if request.dynamic_batch else request.inputs
    torch.onnx.export(
        model, tuple(examples.tensors), path, dynamo=True, opset_version=request.opset, external_data=False,
        verbose=False, dynamic_shapes=(tuple(None if dim is None else {dim: batch} for dim in request.free),),
        input_names=request.drafts[0], output_names=request.drafts[1],
    )  # fmt: skip


def _legacy(model: nn.Module, path: Path, request: Request) -> None:
    flat = Inputs(tuple(request.inputs.tensors), batch_dims=request.inputs.dims)
    outputs = outputs_of(model, flat)
    grown = outputs_of(model, flat.grown()) if request.dynamic_batch else outputs
    pairs = [(a.shape, b.shape) for a, b in zip(outputs, grown, strict=True)]
    grow = [[d for d, (n, m) in enumerate(zip(a, b, strict=False)) if n != m] for a, b in pairs]
    names, names_out = request.drafts
    free = [[] if dim is None else [dim] for dim in request.free]
    axes = {name: dict.fromkeys(dims, "batch") for name, dims in zip((*names, *names_out), (*free, *grow), strict=True)}
    with _silent(model):
        torch.onnx.export(
            model, flat.args, path, dynamo=False, opset_version=request.opset or OLDEST_DYNAMO_OPSET,
            input_names=names, output_names=names_out,
            dynamic_axes={name: dims for name, dims in axes.items() if dims},
        )  # fmt: skip


@contextlib.contextmanager
def _silent(model: nn.Module) -> Iterator[None]:
    """Silence the C++ log of the older exporter, which prints its graph when it fails.

    The exporter enables that log when it starts, and leaves it enabled. It is disabled when the exporter runs the
    model, and restored afterwards.
    """
    switch = torch._C._jit_set_onnx_log_enabled  # noqa: SLF001 -- there is no public one
    was_enabled = torch._C._jit_is_onnx_log_enabled()  # noqa: SLF001
    hook = model.register_forward_pre_hook(lambda *_: switch(False))  # noqa: FBT003 -- it takes no names
    try:
        yield
    finally:
        hook.remove()
        switch(was_enabled)


WRITERS: dict[str, Writer] = {"dynamo": _dynamo, "legacy": _legacy}


def _reason(error: BaseException) -> str:
    """Return the first line of the error, and of its root cause, which is more specific."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    texts = [re.sub(r"\x1b\[[\d;]*m", "", str(e)).strip() or type(e).__name__ for e in (error, root)]
    return ": ".join(dict.fromkeys(text.splitlines()[0].rstrip(".: ") for text in texts))


class _Muted:
    """A stream that discards what this thread writes, and forwards what other threads write."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._owner = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._owner else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever a stream has
        return getattr(self._stream, name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the exporters print, log and warn; failures are raised, or found by the check.

    The fast path of PyTorch's attention is one operator that ONNX does not have, so it is disabled in the block.
    Logging and this switch are global to the process, so exports in several threads wait for each other.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    with (
        without_warnings(),
        contextlib.redirect_stdout(_Muted(sys.stdout)),
        contextlib.redirect_stderr(_Muted(sys.stderr)),
    ):
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        fast = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(value=False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(value=fast)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
