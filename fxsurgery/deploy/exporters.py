"""PyTorch's two ONNX exporters: the current one and the older one. Neither is trusted: what they write is checked."""

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
"""Asked for an older one, the current exporter often gives this, silently."""
LARGEST_BATCH = 1 << 16
"""What the current exporter wants to be told; files take more."""


@dataclass(frozen=True, eq=False)
class Request:
    """What every exporter is asked for."""

    inputs: Inputs
    opset: int | None
    dynamic_batch: bool
    kept: tuple[int, ...]
    """The input tensors, by their place, whose values stay in every draw."""
    names: tuple[str, ...]
    """Of the input tensors, in the file."""
    names_out: tuple[str, ...]

    @property
    def drafts(self) -> tuple[list[str], list[str]]:
        """Names that no exporter gives an inner value; those wanted it may."""
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
        """The dim of each input that shall have any length: its batch."""
        return list(self.inputs.dims) if self.dynamic_batch else [None] * len(self.inputs.tensors)


Writer = Callable[[nn.Module, Path, Request], None]
"""Takes the model as `Flat`."""


def write(name: str, model: nn.Module, path: Path, request: Request) -> int:
    """Write a file with one exporter, and return its opset.

    Args:
        name: of the exporter.
        model: in eval mode on the CPU.
        path: where the file goes.
        request: what the file shall have.

    Raises:
        ExportError: there is no such exporter, it fails, or it gives another opset than was asked for.
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
            f"opset {request.opset} was asked for, but the exporter gave {found}; pass "
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
    """Keep the older exporter's C++ log off the terminal, on which it shows its graph when it fails.

    The exporter turns that log on as it begins, and leaves it on. So it is turned off when the exporter runs the
    model, and is afterwards as it was.
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
    """The first line of the error, and of the one at its root, which says more."""
    root = error
    while root.__cause__ is not None:
        root = root.__cause__
    texts = [re.sub(r"\x1b\[[\d;]*m", "", str(e)).strip() or type(e).__name__ for e in (error, root)]
    return ": ".join(dict.fromkeys(text.splitlines()[0].rstrip(".: ") for text in texts))


class _Muted:
    """A stream that drops what this thread writes, and passes on what other threads do."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._owner = stream, threading.get_ident()

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self._owner else self._stream.write(text)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 -- whatever a stream has
        return getattr(self._stream, name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print, log and warn; what matters of it comes as an error, or shows in the check.

    The fast path of PyTorch's attention is one operator that ONNX does not have; meanwhile it is off. Logging and
    this switch are the whole process's, so exports in several threads wait for each other.
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
