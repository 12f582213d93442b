"""Base classes of the steps of a deploy chain, and the artifact that they pass on.

A step is a value: a frozen dataclass whose fields are its options. Its text, `check(rtol=0.01)`, reads back
(`fxsurgery.deploy.chain.parse`), as that of a pass does.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar, Self

from typing_extensions import override

from fxsurgery.deploy.model_source import Source
from fxsurgery.deploy.onnx_model import Parity
from fxsurgery.errors import ExportError
from fxsurgery.option_types import check_fields


@dataclass(frozen=True, eq=False)
class Artifact:
    """A file under construction, with what the steps so far have determined."""

    source: Source
    """The model that it comes from."""
    path: Path
    """Path that the steps write to."""
    made_by: "tuple[FileStep, ...]" = ()
    """The steps that wrote the file, in order."""
    dynamic_batch: bool = True
    """Whether the file accepts any batch size."""
    opset: int = 0
    """Opset of the file; 0 before it is written."""
    rtol: float | None = None
    """Relative error that the transforms may cause; `None` for rounding only."""
    parity: Parity | None = None
    """Result of the check; `None` if the file was not checked."""

    def shapes(self) -> Iterator[tuple[int | str, ...]]:
        """Yield the shape of each input, with `"batch"` for the dim of any size."""
        inputs = self.source.inputs
        for x, batch_dim in zip(inputs.tensors, inputs.dims, strict=True):
            free = batch_dim if self.dynamic_batch else None
            yield tuple("batch" if dim == free else size for dim, size in enumerate(x.shape))

    def of_twin(self, source: Source, path: Path) -> "Artifact":
        """Return the file that the same steps write for a model of the same structure.

        Raises:
            ExportError: a step fails.
        """
        made = Artifact(source, path)
        for step in self.made_by:
            made = step.apply(made)
        return made


@dataclass(frozen=True)
class DeployStep(ABC):
    """One step of a deploy chain."""

    name: ClassVar[str]

    def __post_init__(self) -> None:
        check_fields(self, ExportError)

    @override
    def __str__(self) -> str:
        options = ((f.name, getattr(self, f.name), f.default) for f in fields(self))
        told = ",".join(f"{name}={value!r}" for name, value, default in options if value != default)
        return f"{self.name}({told})" if told else self.name


class FileStep(DeployStep):
    """A step that writes, rewrites or checks the file."""

    @abstractmethod
    def apply(self, artifact: Artifact) -> Artifact:
        """Return the artifact after this step.

        Raises:
            ExportError: the step fails; the file is then of no use.
        """

    def prepare(self, source: Source) -> None:
        """Refuse a source that this step cannot work on, before anything is written.

        Raises:
            ExportError: it says why.
        """

    def alternatives(self) -> tuple[Self, ...]:
        """Return the forms of this step to try one after the other, until the whole chain goes through."""
        return (self,)


class Transform(FileStep):
    """A step that rewrites the file in place, and may cause errors beyond rounding."""

    tolerance: ClassVar[float | None]
    """Relative error, as in `Parity`, that it may cause; `None` for rounding only."""

    @override
    def apply(self, artifact: Artifact) -> Artifact:
        self.rewrite(artifact.path)
        allowed = [rtol for rtol in (artifact.rtol, self.tolerance) if rtol is not None]
        return replace(artifact, made_by=(*artifact.made_by, self), rtol=max(allowed, default=None))

    @abstractmethod
    def rewrite(self, path: Path) -> None:
        """Rewrite the file at `path`.

        Raises:
            ExportError: the file cannot be rewritten.
        """
