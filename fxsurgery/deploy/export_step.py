"""`Export`, the first step of a chain: from PyTorch to an ONNX file."""

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
    """Write the ONNX file.

    Example:
        >>> [step.exporter for step in Export().alternatives()], [s.exporter for s in Export(opset=17).alternatives()]
        (['dynamo', 'legacy'], ['legacy'])
    """

    name: ClassVar[str] = "export"

    exporter: Exporter = "auto"
    """`"dynamo"`, `"legacy"`, or `"auto"`: the first, and the second if the chain fails with it."""
    opset: Opset = None
    """Version of the operator set; `None` lets the exporter choose."""
    dynamic_batch: bool = True
    """Whether the file accepts any batch size."""

    @override
    def alternatives(self) -> tuple["Export", ...]:
        if self.exporter != "auto":
            return (self,)
        is_old = self.opset is not None and self.opset < OLDEST_DYNAMO_OPSET
        names: tuple[Exporter, ...] = ("legacy",) if is_old else ("dynamo", "legacy")
        return tuple(replace(self, exporter=name) for name in names)

    @override
    def prepare(self, source: Source) -> None:
        """Refuse a model on which every exporter would fail, with a clearer message than the exporters have.

        Raises:
            ExportError: the model returns no tensor, or does not accept another batch size.
        """
        if not source.names_out:
            raise ExportError("the model returns no tensor for example_inputs; return at least one from forward")
        if not self.dynamic_batch:
            return
        if any(x.dim() for x in source.inputs.tensors) and not source.inputs.is_resizable:
            raise ExportError(
                "no dim of the inputs is known to be a batch of any size; pass batch_dims= to declare it, or "
                f"{assigned('dynamic_batch', value=False)} to export the model for inputs of these sizes only"
            )
        batch = source.inputs.batch or 1
        try:
            source.outputs(seeded(source.inputs, batch + 1, 0, source.kept))
        except ExportError as error:
            remedy = f"pass {assigned('dynamic_batch', value=False)} to export it for batch size {batch} only"
            raise ExportError(f"{error}; {remedy}") from error

    @override
    def apply(self, artifact: Artifact) -> Artifact:
        source = artifact.source
        request = Request(
            source.inputs, self.opset, self.dynamic_batch, source.kept, source.names, source.names_out
        )  # fmt: skip
        opset = write(self.exporter, source.model, artifact.path, request)
        return replace(artifact, made_by=(self,), dynamic_batch=self.dynamic_batch, opset=opset)
