"""Parity check: compare an exported file, run by ONNX Runtime at two batch sizes, with its PyTorch model.

    error = max |onnx - torch| / max |torch|    for each output

Agreement means something only where the output varies with the input by more than the error that passes. A
zero-initialized head agrees with anything, and a zero-initialized residual branch hides all that is in it: such a
model is checked as it is, and again as a twin whose all-zero weights are random, exported the same way.
"""

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import override

from fxsurgery.argument_names import assigned, keyword
from fxsurgery.batch_layout import Statement
from fxsurgery.calls import checked_construction
from fxsurgery.comparison import TOLERANCE
from fxsurgery.deploy.determinism import CPU, output_gap, require_repeatable
from fxsurgery.deploy.model_source import Source
from fxsurgery.deploy.onnx_model import Parity
from fxsurgery.deploy.ort_session import open_session, run_session
from fxsurgery.deploy.random_inputs import is_stuck, seeded
from fxsurgery.deploy.steps import Artifact, FileStep
from fxsurgery.errors import ExportError
from fxsurgery.example_inputs import ExampleInputs
from fxsurgery.option_types import FilePath, Range, checked
from fxsurgery.seeding import seeded as seeded_states
from fxsurgery.surroundings import plain_surroundings

LABEL_TOLERANCE = 1e-3
"""Fraction of integer or boolean outputs that may differ, because rounding can decide a near tie."""

Reexport = Callable[[nn.Module, Path], object]
"""Exports a model of the same structure to another file."""


@checked_construction
@dataclass(frozen=True)
class Check(FileStep):
    """Compare the file with the model in PyTorch.

    Example:
        >>> str(Check()), str(Check(rtol=0.01))
        ('check', 'check(rtol=0.01)')
    """

    name: ClassVar[str] = "check"

    rtol: Annotated[float | None, Range(above=0)] = None
    """Largest relative error that passes; by default that of rounding, or the tolerance of the transforms before."""

    @override
    def prepare(self, source: Source) -> None:
        """Refuse a model that cannot be compared with any file.

        Raises:
            ExportError: two runs of the model itself differ.
        """
        require_repeatable(source.outputs)

    @override
    def apply(self, artifact: Artifact) -> Artifact:
        source = artifact.source

        def reexport(twin: nn.Module, path: Path) -> object:
            return artifact.of_twin(source.twin(twin), path)

        rtol = artifact.rtol if self.rtol is None else self.rtol
        parity = _checked(source, artifact.path, dynamic_batch=artifact.dynamic_batch, rtol=rtol, reexport=reexport)
        return replace(artifact, parity=parity)


@checked(ExportError, apart=("example_inputs",))
@plain_surroundings()
@seeded_states(0, CPU)
def check_parity(  # noqa: PLR0913 -- each by name but what is compared
    model: nn.Module,
    onnx_path: FilePath,
    example_inputs: ExampleInputs | None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    batch_dims: Statement = None,
    dynamic_batch: bool = True,
    rtol: float | None = None,
    reexport: Reexport | None = None,
) -> Parity:
    """Compare a file with the model it came from, on seeded inputs shaped like the examples.

    Args:
        model: it is not changed; a copy in eval mode on the CPU is run.
        onnx_path: the ONNX file.
        example_inputs: what the model is called with, in one of the forms of `fxsurgery.example_inputs`.
        example_kwargs: inputs by name, beside the others.
        batch_dims: which dim of the inputs is the batch; inferred from what the model's outputs follow unless given.
        dynamic_batch: whether the file takes another batch size than the examples'.
        rtol: the largest relative error that passes. By default 1e-4 for float32: sums in another order differ by
            1e-5 at most in deep models, while a wrong operator or weight differs by far more than 1e-4.
        reexport: how to export a twin with the all-zero weights randomized. Without it, a model whose outputs
            do not depend on its inputs is refused.

    Raises:
        ExportError: the file does not load or run, its outputs have other shapes or types, they differ, they would
            have agreed with anything, or the model draws random numbers, so that two runs of itself differ.
    """
    source = Source.of(model, example_inputs, example_kwargs, batch_dims)
    require_repeatable(source.outputs)
    return _checked(source, Path(onnx_path), dynamic_batch=dynamic_batch, rtol=rtol, reexport=reexport)


def _checked(
    source: Source, path: Path, *, dynamic_batch: bool, rtol: float | None, reexport: Reexport | None
) -> Parity:
    model = source.model
    parity = _compare(source, path, dynamic_batch=dynamic_batch, rtol=rtol)
    lively = _enlivened(model)
    if reexport is not None and lively is not None and (parity.constant_outputs or _hides(model)):
        with tempfile.TemporaryDirectory(prefix="fxsurgery-") as folder:
            twin = Path(folder) / "twin.onnx"
            reexport(lively, twin)
            again = _compare(source.twin(lively), twin, dynamic_batch=dynamic_batch, rtol=rtol)
        errors = tuple(map(max, parity.errors, again.errors))
        parity = replace(again, error=max(errors), errors=errors, enlivened=True)
    if len(parity.constant_outputs) == len(parity.errors):
        raise ExportError(_vacuous(path, source))
    return parity


def _compare(source: Source, path: Path, *, dynamic_batch: bool, rtol: float | None) -> Parity:
    session, names, examples, kept = open_session(path), source.names, source.inputs, source.kept
    own = examples.batch or 1
    sizes = (own, own + 1) if dynamic_batch and examples.is_resizable else (own,)
    errors = list[list[float]]()
    drawn = [seeded(examples, size, seed, kept) for size, seed in ((own, 0), (sizes[-1], 1))]
    for size, inputs in zip((own, sizes[-1], own), [*drawn, *([examples] if kept else [])], strict=False):
        wanted = source.outputs(inputs)
        got = run_session(session, dict(zip(names, inputs.tensors, strict=True)))
        if (kinds := _kinds(got)) != _kinds(wanted):
            raise ExportError(
                f"at batch size {size} ONNX Runtime gives {kinds}, not {_kinds(wanted)}; export it for this size "
                f"alone with {assigned('dynamic_batch', value=False)}, or try the other {keyword('exporter')}"
            )
        errors.append([*map(output_gap, got, wanted)])
    worst = tuple(map(max, *errors))
    first, second = (source.outputs(seeded(examples, own, seed, kept)) for seed in (2, 3))
    limits = [_limit(o, rtol) for o in first]
    if any(error > limit for error, limit in zip(worst, limits, strict=True)):
        figures = ", ".join(f"{e:.1e} (limit {limit:.0e})" for e, limit in zip(worst, limits, strict=True))
        raise ExportError(
            f"ONNX Runtime and PyTorch differ, relative to the largest value of each output: {figures}; try the other "
            f"{keyword('exporter')}, or accept the difference with {assigned('check', value=False)}"
        )
    spreads = [*map(output_gap, first, second)]
    constant = tuple(i for i, spread in enumerate(spreads) if spread <= 2 * limits[i])
    varying = [spread for i, spread in enumerate(spreads) if i not in constant]
    return Parity(
        max(worst, default=0.0), worst, min(varying, default=0.0), sizes, constant_outputs=constant,
        kept_inputs=tuple(names[i] for i in kept),
    )  # fmt: skip


def _limit(output: Tensor, rtol: float | None) -> float:
    return TOLERANCE.get(output.dtype, LABEL_TOLERANCE) if rtol is None else rtol


def _kinds(outputs: list[Tensor]) -> str:
    return ", ".join(f"{tuple(o.shape)} {str(o.dtype).removeprefix('torch.')}" for o in outputs) or "no output"


def _is_dead(parameter: Tensor) -> bool:
    return parameter.is_floating_point() and bool(parameter.numel()) and not parameter.any()


def _hides(model: nn.Module) -> bool:
    """Return True if a weight is all zero and hides what feeds it. A zero bias hides nothing."""
    return any(_is_dead(p) for name, p in model.named_parameters() if name.rpartition(".")[2] != "bias")


def _enlivened(model: nn.Module) -> nn.Module | None:
    """Return a copy with random values in all-zero parameters; `None` if there are none."""
    if not any(map(_is_dead, model.parameters())):
        return None
    lively = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in filter(_is_dead, lively.parameters()):
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return lively


def _vacuous(path: Path, source: Source) -> str:
    stuck = [name for name, x in zip(source.names, source.inputs.tensors, strict=True) if is_stuck(x)]
    hint = (
        f"; example input {', '.join(stuck)} holds a single value, pass varied ones"
        if stuck
        else "; use its trained weights"
    )
    return f"{path.name} cannot be checked: the model's outputs hardly depend on its inputs{hint}"
