"""Deploy chains: export -> transform -> check -> measure, each step a value.

    chain = Chain((Export(), ToFloat16(), Check(), Measure(rounds=50)))
    str(chain) == "export;to-float16;check;measure(rounds=50)"

If a step fails, the chain starts again with the next alternative of its export. The file is moved to its path only
after every step has succeeded.
"""

import hashlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from typing_extensions import override

from fxsurgery.argument_names import keyword
from fxsurgery.batch_layout import Statement
from fxsurgery.calls import checked_construction
from fxsurgery.deploy.determinism import CPU
from fxsurgery.deploy.export_step import Export
from fxsurgery.deploy.interleave import Measure
from fxsurgery.deploy.latency_report import LatencyReport, report_of
from fxsurgery.deploy.measurement import Measurement
from fxsurgery.deploy.model_source import Source
from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.opsets import require_opset
from fxsurgery.deploy.parity import Check
from fxsurgery.deploy.steps import Artifact, DeployStep, FileStep
from fxsurgery.deploy.transforms import ToFloat16
from fxsurgery.errors import ExportError, SpecError, reason_of
from fxsurgery.example_inputs import ExampleInputs
from fxsurgery.files import require_plain
from fxsurgery.option_types import FilePath, check_fields, checked
from fxsurgery.seeding import seeded
from fxsurgery.specs import parse_spec
from fxsurgery.surroundings import plain_surroundings

STEPS: Mapping[str, type[DeployStep]] = {step.name: step for step in (Export, ToFloat16, Check, Measure)}
"""Registry of the steps by name."""


@dataclass(frozen=True)
class Deployed:
    """Result of a chain: the file, and its latency if it was measured."""

    file: OnnxModel
    measurement: Measurement | None
    """`None` without a `Measure` step."""

    @cached_property
    def latency(self) -> LatencyReport | None:
        """Statistics of the measurement."""
        return None if self.measurement is None else report_of(self.measurement)


@checked_construction
@dataclass(frozen=True)
class Chain:
    """A sequence of steps: an `Export`, any transforms and checks, and at most one `Measure`, which is the last.

    Raises:
        SpecError: the steps are in another order.

    Example:
        >>> from fxsurgery.deploy import Export, Measure
        >>> str(Chain((Export(opset=18), Check(), Measure(rounds=50))))
        'export(opset=18);check;measure(rounds=50)'
    """

    steps: tuple[DeployStep, ...]

    def __post_init__(self) -> None:
        check_fields(self, SpecError)
        first, *rest = self.steps or (None,)
        between = rest[:-1] if rest and isinstance(rest[-1], Measure) else rest
        middle_ones = all(isinstance(step, FileStep) and not isinstance(step, Export) for step in between)
        if not isinstance(first, Export) or not middle_ones:
            raise SpecError(
                f"the chain {str(self)!r} is out of order: begin with export, and put measure last, such as "
                "export;to-float16;check;measure"
            )

    @override
    def __str__(self) -> str:
        return ";".join(map(str, self.steps))

    @checked(ExportError, apart=("example_inputs",))
    @plain_surroundings()
    @seeded(0, CPU)
    def run(
        self,
        model: nn.Module,
        example_inputs: ExampleInputs | None,
        path: FilePath,
        *,
        example_kwargs: Mapping[str, Any] | None = None,
        batch_dims: Statement = None,
    ) -> Deployed:
        """Apply the steps to `model` and write the ONNX file to `path`.

        Args:
            model: it is not modified; a copy in eval mode on the CPU is exported.
            example_inputs: what the model is called with, in one of the forms of `fxsurgery.example_inputs`.
            path: where the file goes, written whole or not at all; missing directories are created.
            example_kwargs: inputs by name, beside the others.
            batch_dims: which dim of the inputs is the batch, as for `fxsurgery.capture`.

        Raises:
            DataError: the inputs have no known form, or `batch_dims` does not fit them.
            DeviceError: the provider to measure on is not there.
            ExportError: a step fails with each exporter, or the file cannot be written. A file that was at `path`
                before is still there.
        """
        path = Path(path)
        require_place(path)
        runs_file = any(isinstance(step, Check | Measure) for step in self.steps)
        require_opset(self._export.opset, self._export.exporter, runs=runs_file)
        source = Source.of(model, example_inputs, example_kwargs, batch_dims)
        for step in self._file_steps:
            step.prepare(source)
        with parents_of(path):
            return self._first_that_works(source, path)

    def _first_that_works(self, source: Source, path: Path) -> Deployed:
        failures, last = list[str](), None
        for chain in self._alternatives():
            try:
                return chain._attempt(source, path, failures)  # noqa: SLF001 -- a chain itself
            except OSError as error:
                raise ExportError(
                    f"cannot write {path}: {reason_of(error)}; choose a path that you may write to"
                ) from error
            except ExportError as error:
                failures.append(f"{chain._export.exporter}: {error}")  # noqa: SLF001 -- a chain itself
                last = error
        raise ExportError(
            f"{path.name} was not written. {' | '.join(failures)}{_about_types(source.model)}; try another "
            f"{keyword('exporter')} or {keyword('opset')}"
        ) from last

    def _attempt(self, source: Source, path: Path, failures: Sequence[str]) -> Deployed:
        """Apply all steps to a temporary file, then move it to `path`."""
        require_plain(path)
        with tempfile.TemporaryDirectory(prefix=".fxsurgery-", dir=path.parent) as folder:
            artifact = Artifact(source, Path(folder) / path.name)
            for step in self._file_steps:
                artifact = step.apply(artifact)
            file = self._described(artifact, failures)
            measurement = None
            if isinstance(last := self.steps[-1], Measure):
                inputs = source.inputs.resized(1) if artifact.dynamic_batch else source.inputs
                measurement = last.take({path.stem: file}, inputs)
            artifact.path.replace(path)
        return Deployed(replace(file, path=path), measurement)

    def _described(self, artifact: Artifact, failures: Sequence[str]) -> OnnxModel:
        content, source = artifact.path.read_bytes(), artifact.source
        return OnnxModel(
            path=artifact.path,
            opset=artifact.opset,
            exporter=self._export.exporter,
            bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            inputs=source.names,
            shapes=tuple(artifact.shapes()),
            outputs=source.names_out,
            parity=artifact.parity,
            fallback_reason="; ".join(failures) or None,
        )

    def _alternatives(self) -> Iterator["Chain"]:
        for export in self._export.alternatives():
            yield Chain((export, *self.steps[1:]))

    @property
    def _export(self) -> Export:
        first = self.steps[0]
        assert isinstance(first, Export)  # as checked when the chain was made
        return first

    @property
    def _file_steps(self) -> tuple[FileStep, ...]:
        return tuple(step for step in self.steps if isinstance(step, FileStep))


def require_place(path: Path) -> None:
    """Refuse a path that no file can have.

    Raises:
        ExportError: it is a directory, or a file stands where one of its directories would be.
    """
    if path.is_dir():
        raise ExportError(f"cannot write {path}: it is a directory; name a file in it")
    stands = next((parent for parent in path.parents if parent.exists()), path)
    if not stands.is_dir():
        raise ExportError(f"cannot write {path}: {stands} is a file, not a directory; choose another path")


@contextmanager
def parents_of(path: Path) -> Iterator[None]:
    """Create the missing directories of a file; remove them again if the block fails.

    Raises:
        ExportError: one of them cannot be created.
    """
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(
            f"cannot create the directory {path.parent}: {reason_of(error)}; choose a path that you may write to"
        ) from error
    try:
        yield
    except BaseException:
        for parent in missing:
            with suppress(OSError):  # something else was put there meanwhile
                parent.rmdir()
        raise


@checked(SpecError)
def parse(text: str) -> Chain:
    """Return the chain that `text` describes: `parse(str(chain)) == chain`. No part of `text` is executed.

    Raises:
        SpecError: `text` has an unknown step or option, or the steps are out of order.

    Example:
        >>> parse("export(opset=18);check(rtol=0.001);measure(rounds=50)").steps[1]
        Check(rtol=0.001)
    """
    return Chain(tuple(parse_spec(part, STEPS, kind="step", example="check(rtol=0.01)") for part in text.split(";")))


def _about_types(model: nn.Module) -> str:
    """Return a hint for models in dtypes for which ONNX Runtime has few operators; empty for other models."""
    types = {t.dtype for t in (*model.parameters(), *model.buffers()) if t.is_floating_point()}
    names = sorted(str(dtype).removeprefix("torch.") for dtype in types & {torch.float64, torch.bfloat16})
    if not names:
        return ""
    return f". ONNX Runtime has few operators in {' and '.join(names)} on the CPU: export a copy in float32 (.float())"
