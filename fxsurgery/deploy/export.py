"""ONNX export: the current exporter, the older one where that fails, and a check before anything is kept.

Neither exporter is trusted: a file is put in place only when ONNX Runtime agrees with PyTorch on it.
"""

import contextlib
import copy
import hashlib
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import onnx
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxsurgery.deploy.onnx_model import OnnxModel, Parity
from fxsurgery.deploy.parity import check_parity, enlivened, is_vacuous
from fxsurgery.errors import ExportError

Exporter = Literal["auto", "dynamo", "legacy"]
OLDEST_DYNAMO_OPSET = 18
"""Asked for an older one, the current exporter silently gives this."""

_Write = Callable[[nn.Module, tuple[Tensor, ...], Path, int | None, bool], None]


def export_onnx(
    model: nn.Module,
    example_inputs: tuple[Tensor, ...],
    path: str | Path,
    *,
    opset: int | None = None,
    dynamic_batch: bool = True,
    exporter: Exporter = "auto",
    check: bool = True,
) -> OnnxModel:
    """Write `model` to `path` as one ONNX file.

    Args:
        model: it is not changed; a copy in eval mode on the CPU is exported.
        example_inputs: its positional inputs, the batch along dim 0.
        path: where the file goes; written whole or not at all.
        opset: the operator set; the exporter's own choice unless said.
        dynamic_batch: whether the file takes any batch size.
        exporter: `"dynamo"`, `"legacy"`, or `"auto"`: the first, and the second where that fails or the opset
            is below 18.
        check: compare with ONNX Runtime, at two batch sizes where the batch is dynamic.

    Raises:
        ExportError: no exporter can do it, the file disagrees with the model, or it cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise ExportError(f"cannot write {path}: there is no directory {path.parent}")
    frozen = copy.deepcopy(model).eval().cpu()
    inputs = tuple(x.detach().cpu() for x in example_inputs)
    failures = list[str]()
    for name in _order(exporter, opset):
        try:
            with tempfile.TemporaryDirectory(prefix=".fxsurgery-", dir=path.parent) as folder:
                draft = Path(folder) / path.name
                found = _exported(name, frozen, inputs, draft, opset, dynamic_batch=dynamic_batch)
                parity = _parity(name, frozen, inputs, draft, opset, dynamic_batch) if check else None
                content = draft.read_bytes()
                draft.replace(path)
        except OSError as error:
            raise ExportError(f"cannot write {path}: {error}") from error
        except ExportError as error:
            failures.append(f"{name}: {error}")
            continue
        return OnnxModel(path, found, name, len(content), hashlib.sha256(content).hexdigest(), parity)
    raise ExportError("the model cannot be exported. " + " | ".join(failures))


def _order(exporter: Exporter, opset: int | None) -> tuple[str, ...]:
    if exporter != "auto":
        return (exporter,)
    return ("legacy",) if opset is not None and opset < OLDEST_DYNAMO_OPSET else ("dynamo", "legacy")


def _exported(
    name: str, model: nn.Module, inputs: tuple[Tensor, ...], path: Path, opset: int | None, *, dynamic_batch: bool
) -> int:
    """Write the file with one exporter; the opset that it has."""
    writer = _WRITERS.get(name)
    if writer is None:
        raise ExportError(f"no exporter is named {name!r}; there are: {', '.join(_WRITERS)}")
    try:
        with _quiet(), torch.no_grad():
            writer(model, inputs, path, opset, dynamic_batch)
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"the exporter failed: {first}") from error
    [found] = [o.version for o in onnx.load(path, load_external_data=False).opset_import if o.domain in {"", "ai.onnx"}]
    if opset is not None and found != opset:
        raise ExportError(f"opset {opset} was asked for, but the exporter gave {found}")
    return int(found)


def _dynamo(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    opset: int | None,
    dynamic_batch: bool,  # noqa: FBT001
) -> None:
    batch = torch.export.Dim("batch", min=1, max=1 << 16)
    shapes = tuple({0: batch} if x.dim() else None for x in inputs) if dynamic_batch else None
    # One sample would be taken for a constant.
    many = tuple(torch.cat([x, x]) if x.dim() and len(x) == 1 and dynamic_batch else x for x in inputs)
    torch.onnx.export(
        model, many, path, dynamo=True, opset_version=opset, external_data=False,
        dynamic_shapes=shapes, input_names=_names("input", len(inputs)),
        output_names=_names("output", _outputs(model, inputs)), verbose=False, optimize=True,
    )  # fmt: skip


def _legacy(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    opset: int | None,
    dynamic_batch: bool,  # noqa: FBT001
) -> None:
    names_in, names_out = _names("input", len(inputs)), _names("output", _outputs(model, inputs))
    axes = {name: {0: "batch"} for name in (*names_in, *names_out)} if dynamic_batch else None
    torch.onnx.export(
        model, inputs, path, dynamo=False, opset_version=opset or OLDEST_DYNAMO_OPSET,
        input_names=names_in, output_names=names_out, dynamic_axes=axes,
    )  # fmt: skip


_WRITERS: dict[str, _Write] = {"dynamo": _dynamo, "legacy": _legacy}


def _parity(  # noqa: PLR0917 -- private
    name: str,
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    opset: int | None,
    dynamic_batch: bool,  # noqa: FBT001
) -> Parity:
    if not is_vacuous(model, inputs):
        return check_parity(model, path, inputs, dynamic_batch=dynamic_batch)
    lively = enlivened(model)
    if is_vacuous(lively, inputs):
        raise ExportError("the model's outputs do not depend on its inputs: agreement would mean nothing")
    twin = path.with_name(f"lively-{path.name}")
    _exported(name, lively, inputs, twin, opset, dynamic_batch=dynamic_batch)
    parity = check_parity(lively, twin, inputs, dynamic_batch=dynamic_batch)
    return Parity(parity.error, parity.batch_sizes, enlivened=True)


def _outputs(model: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    output = model(*(x.clone() for x in inputs))
    return sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(output))


def _names(kind: str, count: int) -> list[str]:
    return [kind] if count == 1 else [f"{kind}_{i}" for i in range(count)]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print, log and warn; what matters of it comes as an error."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
