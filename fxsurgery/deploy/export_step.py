"""The first step of a chain: from PyTorch to an ONNX file."""

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal, TypeAlias

from typing_extensions import override

from fxsurgery.argument_names import assigned
from fxsurgery.calls import checked_construction
from fxsurgery.deploy.exporters import OLDEST_DYNAMO_OPSET, Request, write
from fxsurgery.deploy.model_source import Source
from fxsurgery.deploy.random_inputs import seeded
from fxsurgery.deploy.steps import Artifact, FileStep
from fxsurgery.errors import ExportError
from fxsurgery.option_types import Range

Exporter: TypeAlias = Literal["auto", "dynamo", "legacy"]
Opset: TypeAlias = Annotated[int | None, Range(least=1, below=10**4)]


@checked_construction
@dataclass(frozen=True)
class Export(FileStep):
    """Write the file.

    Example:
        >>> [step.exporter for step in Export().alternatives()], [s.exporter for s in Export(opset=17).alternatives()]
        (['dynamo', 'legacy'], ['legacy'])
    """

    name: ClassVar[str] = "export"

    exporter: Exporter = "auto"
    """`"dynamo"`, `"legacy"`, or `"auto"`: the first, and the second where the chain does not go through with it."""
    opset: Opset = None
    """The operator set; `None` is the exporter's own choice."""
    dynamic_batch: bool = True
    """Whether the file takes any batch size."""

    @override
    def alternatives(self) -> tuple["Export", ...]:
        if self.exporter != "auto":
            return (self,)
        is_old = self.opset is not None and self.opset < OLDEST_DYNAMO_OPSET
        names: tuple[Exporter, ...] = ("legacy",) if is_old else ("dynamo", "legacy")
        return tuple(replace(self, exporter=name) for name in names)

    @override
    def prepare(self, source: Source) -> None:
        """Refuse a model that every exporter would fail on, each with an error of its own that says less.

        Raises:
            ExportError: the model gives no tensor, or does not take a batch of another size.
        """
        if not source.names_out:
            raise ExportError("the model gives no tensor on example_inputs; return at least one from forward")
        if not self.dynamic_batch:
            return
        if any(x.dim() for x in source.inputs.tensors) and not source.inputs.is_resizable:
            raise ExportError(
                "no dim of the inputs is known to be a batch of any size; give batch_dims= to say which is, or "
                f"{assigned('dynamic_batch', value=False)} to export it for inputs of these sizes alone"
            )
        batch = source.inputs.batch or 1
        try:
            source.outputs(seeded(source.inputs, batch + 1, 0, source.kept))
        except ExportError as error:
            wish = f"give {assigned('dynamic_batch', value=False)} to export it for batch size {batch} alone"
            raise ExportError(f"{error}; {wish}") from error

    @override
    def apply(self, artifact: Artifact) -> Artifact:
        source = artifact.source
        request = Request(
            source.inputs, self.opset, self.dynamic_batch, source.kept, source.names, source.names_out
        )  # fmt: skip
        opset = write(self.exporter, source.model, artifact.path, request)
        return replace(artifact, made_by=(self,), dynamic_batch=self.dynamic_batch, opset=opset)
