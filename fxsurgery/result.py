"""What `optimize` gives back: the smaller model, what it costs and scores, and how it came about."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import fx

from fxsurgery.analysis.cost import cost
from fxsurgery.budget import Cost
from fxsurgery.deploy import LatencyReport, OnnxModel, export_onnx, resolve_target
from fxsurgery.program import Program


@dataclass(frozen=True, eq=False)
class BeforeAfter:
    """One figure of the original and of the result."""

    before: float
    after: float

    @property
    def ratio(self) -> float:
        """After over before."""
        return self.after / self.before if self.before else float("nan")


@dataclass(frozen=True, eq=False)
class Result:
    """The end of an optimisation. Everything here is plain data or plain modules."""

    program: Program
    """The smaller program: its graph, example inputs and log."""
    original: Program
    """The user's model as it was captured."""
    metric_name: str
    metrics: Mapping[str, BeforeAfter]
    """The metric of the model that was pruned and of the result: `val`, and `test` where test data was given.

    `val, not fine-tuned` has the result's right after the surgery instead."""
    notes: tuple[str, ...] = ()
    """What a user should know: widths that stayed, gates that were undecided, parts left alone and why."""
    history: tuple[Mapping[str, Any], ...] = ()
    """The training curves, one record a report."""
    gates: tuple[float, ...] = ()
    seed: int = 0
    _files: dict[str, OnnxModel] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> fx.GraphModule:
        """The smaller model: a plain `torch.nn.Module` in eval mode, with the user's parameter names."""
        return self.program.graph_module

    @property
    def cost(self) -> tuple[Cost, Cost]:
        """What the original takes, and what the result takes."""
        return cost(self.original), cost(self.program)

    @property
    def log(self) -> tuple[str, ...]:
        """The passes that lead from the original's graph to the result's."""
        return self.program.log

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """Inputs that the model takes by position."""
        return self.program.example_inputs

    @property
    def example_kwargs(self) -> Mapping[str, Any]:
        """Inputs that it takes by name."""
        return self.program.example_kwargs

    def summary(self) -> str:
        """A table of before, after and ratio, with the notes."""
        before, after = self.cost
        rows = [
            ("parameters", BeforeAfter(before.params, after.params), "{:,.0f}"),
            ("MACs", BeforeAfter(before.macs, after.macs), "{:,.0f}"),
            *((f"{self.metric_name} ({split})", pair, "{:.4f}") for split, pair in self.metrics.items()),
        ]
        width = max(len(name) for name, _, _ in rows) + 1
        lines = [f"{'':<{width}}{'before':>16}{'after':>16}{'ratio':>9}"]
        for name, pair, form in rows:
            numbers = f"{form.format(pair.before):>16}{form.format(pair.after):>16}{pair.ratio:>9.3f}"
            lines.append(f"{name:<{width}}{numbers}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def export_onnx(self, path: str | Path, **options: Any) -> OnnxModel:  # noqa: ANN401
        """Export the model to ONNX and check it against PyTorch at two batch sizes.

        Args:
            path: where the file goes.
            options: as of `fxsurgery.deploy.export_onnx` (`opset`, `exporter`, ...).

        Raises:
            ExportError: the export fails, or ONNX Runtime disagrees with PyTorch.
        """
        return export_onnx(self.model, self.example_inputs, path, example_kwargs=self.example_kwargs, **options)

    def benchmark(self, device: str = "local", **options: Any) -> LatencyReport:  # noqa: ANN401
        """Measure original and result side by side on one sample, interleaved in one process, through ONNX Runtime.

        Args:
            device: a target: `"local"`.
            options: as of `fxsurgery.deploy.compare_latency` (`rounds`, `threads`, `seconds`, ...).

        Raises:
            DeviceError: there is no such target, or it cannot run the model.
            ExportError: one of the two cannot be exported.
        """
        target = resolve_target(device)
        with tempfile.TemporaryDirectory(prefix="fxsurgery-") as folder:
            files = {
                name: export_onnx(
                    program.graph_module,
                    program.example_inputs,
                    Path(folder) / f"{name}.onnx",
                    example_kwargs=program.example_kwargs,
                )
                for name, program in (("original", self.original), ("result", self.program))
            }
            return target.compare(files, self.program.examples.resized(1), **options)
