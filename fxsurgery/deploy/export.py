"""ONNX export: the current exporter, the older one where that fails, and a check before anything is kept.

Neither exporter is trusted: a file is put in place only when ONNX Runtime agrees with PyTorch on it.
"""

import contextlib
import hashlib
import itertools
import logging
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TextIO

import onnx
import torch
from torch import nn

from fxsurgery.batch_layout import Statement, statement_of
from fxsurgery.deploy.flat_module import Flat
from fxsurgery.deploy.names import input_names, output_names, rename
from fxsurgery.deploy.onnx_model import OnnxModel, Parity
from fxsurgery.deploy.parity import check_parity, frozen_copy, frozen_inputs, located, output_of, outputs_of
from fxsurgery.deploy.random_inputs import kept_values, seeded
from fxsurgery.deploy.randomness import CPU, require_repeatable
from fxsurgery.errors import ExportError, reason_of
from fxsurgery.files import require_plain
from fxsurgery.inputs import Inputs
from fxsurgery.option_types import FilePath, Range, checked
from fxsurgery.seeding import seeded as seeded_states
from fxsurgery.surroundings import plain_surroundings, without_warnings

Exporter = Literal["auto", "dynamo", "legacy"]
OLDEST_DYNAMO_OPSET = 18
"""Asked for an older one, the current exporter often gives this, silently."""
LARGEST_BATCH = 1 << 16
"""What the current exporter wants to be told; files take more."""


@dataclass(frozen=True, eq=False)
class _Request:
    """What every exporter is asked for."""

    inputs: Inputs
    opset: int | None
    dynamic_batch: bool
    kept: tuple[int, ...]
    """The input tensors, by their place, whose values stay in every draw."""
    names: tuple[str, ...]
    """Of the input tensors, in the file that is kept."""
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
        return self.inputs.batch or 1

    @property
    def free(self) -> list[int | None]:
        """The dim of each input that shall have any length: its batch."""
        return list(self.inputs.dims) if self.dynamic_batch else [None] * len(self.inputs.tensors)


_Writer = Callable[[nn.Module, Path, _Request], None]
"""Takes the model as `Flat`."""


@checked(ExportError)
@plain_surroundings()
@seeded_states(0, CPU)
def export_onnx(  # noqa: PLR0913 -- what a user may want to say, each by name
    model: nn.Module,
    example_inputs: Sequence[Any],
    path: FilePath,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    opset: Annotated[int | None, Range(least=1, below=10**4)] = None,
    batch_dims: Statement = None,
    dynamic_batch: bool = True,
    exporter: Exporter = "auto",
    check: bool = True,
) -> OnnxModel:
    """Write `model` to `path` as one ONNX file.

    The file's inputs are the tensors among the model's, named as its parameters of `forward`, or by the keys of
    dicts; everything else among them is a constant of the file. Its outputs are the tensors of the model's output, of
    any structure, in order, named by the keys of a dict or the fields of a dataclass.

    Args:
        model: it is not changed; a copy in eval mode on the CPU is exported.
        example_inputs: its positional inputs: tensors, or tuples, lists and dicts of them.
        example_kwargs: its inputs by name.
        batch_dims: which dim of the inputs is the batch, as for `fxsurgery.capture.capture`; inferred from what the
            model's outputs follow unless given: dim 0 of the first input, unless only another fits. No other size is
            free.
        path: where the file goes; written whole or not at all.
        opset: the operator set; the exporter's own choice unless said.
        dynamic_batch: whether the file takes any batch size.
        exporter: `"dynamo"`, `"legacy"` (ten times as fast, deprecated in PyTorch), or `"auto"`: the first, and the
            second where that fails or the opset is below 18.
        check: compare with ONNX Runtime, at two batch sizes where the batch is dynamic. Integers whose order matters,
            such as offsets, are checked on the values given; `parity.kept_inputs` names them. A model that draws random
            numbers in its forward cannot be compared: pass `check=False`.

    Raises:
        DataError: `batch_dims` does not fit the inputs.
        ExportError: no exporter can do it, the file disagrees with the model, or it cannot be written. What was
            at `path` before is still there.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"cannot write {path}: there is no directory {path.parent}; create it first")
    if path.is_dir():
        raise ExportError(f"cannot write {path}: it is a directory; name a file in it")
    inputs = frozen_inputs(example_inputs, example_kwargs)
    if not inputs.tensors:
        raise ExportError(
            "export needs at least one example input, such as export_onnx(program, path, example_inputs=(x,))"
        )
    frozen = frozen_copy(model)
    inputs = located(frozen, inputs, batch_dims)
    kept = kept_values(inputs, partial(outputs_of, frozen))
    names = input_names(frozen, inputs)
    names_out = output_names(output_of(frozen, inputs), names)
    request = _Request(inputs, opset, dynamic_batch, kept, tuple(names), tuple(names_out))
    _require_run(frozen, request)
    if check:
        require_repeatable(lambda: outputs_of(frozen, inputs))
    failures, last = list[str](), None
    for name in _order(exporter, opset):
        try:
            return _export_with(name, frozen, path, request, check=check, failures=failures)
        except OSError as error:
            raise ExportError(
                f"cannot write {path}: {reason_of(error)}; choose a path that you may write to"
            ) from error
        except ExportError as error:
            failures.append(f"{name}: {error}")
            last = error
    raise ExportError(
        f"{path.name} was not written. {' | '.join(failures)}{_about_types(frozen)}; try another exporter= or opset="
    ) from last


def _about_types(model: nn.Module) -> str:
    """What stands in the way of models in types for which ONNX Runtime has few operators; empty for others."""
    types = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in types & {torch.float64, torch.bfloat16})
    if not names:
        return ""
    return f". ONNX Runtime has few operators in {' and '.join(names)} on the CPU: export a copy in float32 (.float())"


def _order(exporter: Exporter, opset: int | None) -> tuple[str, ...]:
    if exporter != "auto":
        return (exporter,)
    return ("legacy",) if opset is not None and opset < OLDEST_DYNAMO_OPSET else ("dynamo", "legacy")


def _require_run(model: nn.Module, request: _Request) -> None:
    """Without these, every exporter would fail, each with its own riddle."""
    if not request.names_out:
        raise ExportError("the model gives no tensor on example_inputs; return at least one from forward")
    if request.dynamic_batch:
        if any(x.dim() for x in request.inputs.tensors) and not request.inputs.is_resizable:
            raise ExportError(
                "no dim of the inputs is known to be a batch of any size; give batch_dims= to say which is, or "
                "dynamic_batch=False to export it for inputs of these sizes alone"
            )
        try:
            outputs_of(model, seeded(request.inputs, request.batch + 1, 0, request.kept))
        except ExportError as error:
            wish = f"give dynamic_batch=False to export it for batch size {request.batch} alone"
            raise ExportError(f"{error}; {wish}") from error


def _export_with(
    name: str, model: nn.Module, path: Path, request: _Request, *, check: bool, failures: list[str]
) -> OnnxModel:
    """Export, check, and only then put the file in its place."""
    require_plain(path)
    with tempfile.TemporaryDirectory(prefix=".fxsurgery-", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        opset = _write(name, model, draft, request)
        parity = _parity(name, model, draft, request) if check else None
        content = draft.read_bytes()
        draft.replace(path)
    digest = hashlib.sha256(content).hexdigest()
    return OnnxModel(
        path, opset, name, len(content), digest, request.names, request.names_out, parity, "; ".join(failures) or None
    )


def _parity(name: str, model: nn.Module, path: Path, request: _Request) -> Parity:
    return check_parity(
        model, path, request.inputs.args, example_kwargs=request.inputs.kwargs, batch_dims=statement_of(request.inputs),
        dynamic_batch=request.dynamic_batch, reexport=lambda twin, file: _write(name, twin, file, request),
    )  # fmt: skip


def _write(name: str, model: nn.Module, path: Path, request: _Request) -> int:
    """Write the file with one exporter; the opset that it has."""
    writer = _WRITERS.get(name)
    if writer is None:
        raise ExportError(f"no exporter is named {name!r}; there are: auto, {', '.join(_WRITERS)}")
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
            f"opset {request.opset} was asked for, but the exporter gave {found}; pass opset={found}, or try the "
            "other exporter="
        )
    return int(found)


def _dynamo(model: nn.Module, path: Path, request: _Request) -> None:
    batch = torch.export.Dim("batch", min=1, max=LARGEST_BATCH)
    # A batch of one would be taken for a constant.
    size = max(2, request.batch)
    examples = seeded(request.inputs, size, 0, request.kept) if request.dynamic_batch else request.inputs
    torch.onnx.export(
        model, tuple(examples.tensors), path, dynamo=True, opset_version=request.opset, external_data=False,
        verbose=False, dynamic_shapes=(tuple(None if dim is None else {dim: batch} for dim in request.free),),
        input_names=request.drafts[0], output_names=request.drafts[1],
    )  # fmt: skip


def _legacy(model: nn.Module, path: Path, request: _Request) -> None:
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


_WRITERS: dict[str, _Writer] = {"dynamo": _dynamo, "legacy": _legacy}


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
