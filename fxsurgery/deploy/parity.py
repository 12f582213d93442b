"""Does the exported file compute what the model computes? Asked of ONNX Runtime, at two batch sizes.

    error = max |onnx - torch| / max |torch|    for each output

Agreement means something only where the output varies with the input by more than the error that passes. A
zero-initialised head agrees with anything, and a zero-initialised residual branch hides all that is in it: such a
model is checked as it is, and again as a twin whose all-zero weights are random, exported the same way.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxsurgery.deploy.draws import is_stuck, seeded
from fxsurgery.deploy.names import input_names
from fxsurgery.deploy.onnx_model import Parity
from fxsurgery.deploy.session import open_session, run_session
from fxsurgery.errors import ExportError
from fxsurgery.inputs import Inputs, tensors_in
from fxsurgery.surgery import TOLERANCE, relative_error
from fxsurgery.surroundings import plain_surroundings

LABEL_TOLERANCE = 1e-3
"""Share of integer or boolean outputs that may differ: those where rounding tips a near tie."""

Reexport = Callable[[nn.Module, Path], object]
"""Export a model of the same structure to another file."""


@plain_surroundings()
def check_parity(
    model: nn.Module,
    onnx_path: str | Path,
    example_inputs: Sequence[Any],
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_batch: bool = True,
    rtol: float | None = None,
    reexport: Reexport | None = None,
) -> Parity:
    """Compare a file with the model it came from, on seeded inputs shaped like the examples.

    Args:
        model: it is not changed; a copy in eval mode on the CPU is run.
        onnx_path: the ONNX file.
        example_inputs: the model's positional inputs: tensors, or tuples, lists and dicts.
        example_kwargs: its inputs by name.
        dynamic_batch: whether the file takes another batch size than the examples'.
        rtol: the largest relative error that passes. By default 1e-4 for float32: sums in another order differ by
            1e-5 at most in deep models, while a wrong operator or weight differs by far more than 1e-4.
        reexport: how to export a twin with the all-zero weights randomised. Without it, a model whose outputs
            do not depend on its inputs is refused.

    Raises:
        ExportError: the file does not load or run, its outputs have other shapes or types, they differ, or they
            would have agreed with anything.
    """
    model, inputs = frozen_copy(model), frozen_inputs(example_inputs, example_kwargs)
    parity = _compare(model, Path(onnx_path), inputs, dynamic_batch=dynamic_batch, rtol=rtol)
    lively = _enlivened(model)
    if reexport is not None and lively is not None and (parity.constant_outputs or _hides(model)):
        with tempfile.TemporaryDirectory(prefix="fxsurgery-") as folder:
            twin = Path(folder) / "twin.onnx"
            reexport(lively, twin)
            again = _compare(lively, twin, inputs, dynamic_batch=dynamic_batch, rtol=rtol)
        errors = tuple(map(max, parity.errors, again.errors))
        parity = replace(again, error=max(errors), errors=errors, enlivened=True)
    if len(parity.constant_outputs) == len(parity.errors):
        raise ExportError(_vacuous(Path(onnx_path), model, inputs))
    return parity


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode on the CPU.

    Raises:
        ExportError: the model cannot be copied.
    """
    try:
        return copy.deepcopy(model).eval().cpu()
    except Exception as error:
        raise ExportError(f"the model cannot be copied: {error}") from error


def frozen_inputs(example_inputs: Sequence[Any], example_kwargs: Mapping[str, Any] | None) -> Inputs:
    """The inputs, positional and by name, on the CPU."""
    return Inputs(tuple(example_inputs), example_kwargs or {}).map(lambda x: x.detach().cpu())


def output_of(model: nn.Module, inputs: Inputs) -> object:
    """The model's output, of any structure.

    Raises:
        ExportError: it does not run.
    """
    own = inputs.clone()
    try:
        with torch.no_grad():
            output: object = model(*own.args, **own.kwargs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs.tensors)
        raise ExportError(f"the model does not run on inputs of shape {shapes}: {error}") from error
    return output


def outputs_of(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """The model's output tensors, in order.

    Raises:
        ExportError: it does not run.
    """
    return [tensor for _, tensor in tensors_in(output_of(model, inputs))]


def _compare(model: nn.Module, path: Path, examples: Inputs, *, dynamic_batch: bool, rtol: float | None) -> Parity:
    session, names = open_session(path), input_names(model, examples)
    own = examples.batch or 1
    sizes = (own, own + 1) if dynamic_batch else (own,)
    errors = list[list[float]]()
    for size, seed in [(own, 0), (sizes[-1], 1)]:
        inputs = seeded(examples, size, seed)
        wanted = outputs_of(model, inputs)
        got = run_session(session, dict(zip(names, inputs.tensors, strict=True)))
        if (kinds := _kinds(got)) != _kinds(wanted):
            raise ExportError(f"at batch size {size} ONNX Runtime gives {kinds}, not {_kinds(wanted)}")
        errors.append([*map(_gap, got, wanted)])
    worst = tuple(map(max, *errors))
    first, second = (outputs_of(model, seeded(examples, own, seed)) for seed in (2, 3))
    limits = [_limit(o, rtol) for o in first]
    if any(error > limit for error, limit in zip(worst, limits, strict=True)):
        figures = ", ".join(f"{e:.1e} (limit {limit:.0e})" for e, limit in zip(worst, limits, strict=True))
        raise ExportError(f"ONNX Runtime and PyTorch differ, relative to the largest value of each output: {figures}")
    spreads = [*map(_gap, first, second)]
    constant = tuple(i for i, spread in enumerate(spreads) if spread <= 2 * limits[i])
    varying = [spread for i, spread in enumerate(spreads) if i not in constant]
    return Parity(max(worst, default=0.0), worst, min(varying, default=0.0), sizes, constant_outputs=constant)


def _gap(got: Tensor, wanted: Tensor) -> float:
    """How far apart two outputs are, on the scale of the second, however small that is."""
    if not wanted.is_floating_point():
        return float((got != wanted).double().mean()) if wanted.numel() else 0.0
    finite = wanted.double().nan_to_num(0.0, 0.0, 0.0).abs()
    scale = finite.max() if finite.numel() and finite.any() else torch.ones(())
    return relative_error(got.double() / scale, wanted.double() / scale)


def _limit(output: Tensor, rtol: float | None) -> float:
    return TOLERANCE.get(output.dtype, LABEL_TOLERANCE) if rtol is None else rtol


def _kinds(outputs: list[Tensor]) -> str:
    return ", ".join(f"{tuple(o.shape)} {str(o.dtype).removeprefix('torch.')}" for o in outputs) or "no output"


def _is_dead(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and bool(parameter.numel()) and not parameter.any()


def _hides(model: nn.Module) -> bool:
    """Whether a weight is all zero, and so what feeds it leaves no trace. A zero bias hides nothing."""
    return any(_is_dead(p) for name, p in model.named_parameters() if name.rpartition(".")[2] != "bias")


def _enlivened(model: nn.Module) -> nn.Module | None:
    """A copy whose all-zero parameters are random; `None` where there are none."""
    if not any(map(_is_dead, model.parameters())):
        return None
    lively = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in filter(_is_dead, lively.parameters()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lively


def _vacuous(path: Path, model: nn.Module, inputs: Inputs) -> str:
    stuck = [name for name, x in zip(input_names(model, inputs), inputs.tensors, strict=True) if is_stuck(x)]
    hint = f"; example input {', '.join(stuck)} holds one value only, give varied ones" if stuck else ""
    return f"{path.name} cannot be checked: the model's outputs hardly depend on its inputs{hint}"
