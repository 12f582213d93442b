"""The result of `optimize`: the model, its cost and metrics, and how it was found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import fx, nn
from typing_extensions import override

from fxsurgery import report
from fxsurgery.analysis.cost import cost
from fxsurgery.budget import Cost
from fxsurgery.deploy import LatencyReport, OnnxModel, Transform, compare_programs
from fxsurgery.deploy.export_step import Exporter, Opset
from fxsurgery.deploy.kept_exports import EXPORTS
from fxsurgery.errors import CaptureError, DeviceError, ExportError, RunError, SurgeryError
from fxsurgery.option_types import FilePath, checked
from fxsurgery.passes import replay
from fxsurgery.program import Program
from fxsurgery.recapture import captured_as, require_same
from fxsurgery.result_facts import BeforeAfter, cost_of_member, facts_of, programs_of
from fxsurgery.saving import save_result, write_standalone
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training.device import leads


@dataclass(frozen=True, eq=False)
class Result(report.NotebookView):
    """Result of an optimization: plain data, and a module of PyTorch.

    Example:
        result = fxsurgery.optimize(model, train_data=train, val_data=val)
        print(result.summary())
        result.export_onnx("small.onnx")
    """

    program: Program
    """The program that was found: graph, example inputs and surgery log."""
    original: Program
    """The user's model as it was captured."""
    metric_name: str
    metrics: Mapping[str, BeforeAfter]
    """Metric of the trained original and of the result: `val`, and `test` if test data were passed.

    `val, not fine-tuned` has the metric right after the surgery; evolutionary methods do not have it."""
    figures: Mapping[str, BeforeAfter] = field(default_factory=dict)
    """Further values of a metric that returns several: `pixel accuracy (val)`."""
    notes: tuple[str, ...] = ()
    """Notes for the user: widths that stayed, gates that were undecided, parts that were left alone, and why."""
    history: tuple[Mapping[str, Any], ...] = ()
    """Training curves, one record for each report of progress."""
    gates: tuple[float, ...] = ()
    seed: int = 0
    asked: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the run as plain JSON: `method`, `settings`, `budget`, `trained`, `data_free`, `environment`, ..."""
    search: SearchRecord | None = None
    """Trials of a search that trains many networks, such as ECToNAS."""
    pareto: tuple[ParetoMember, ...] = ()
    """Pareto front of an evolutionary search, the cheapest network first."""
    latency: Mapping[str, float] = field(default_factory=dict)
    """Latency, measured side by side on the target: `original_ms`, `ms`, `low_ms` and `high_ms` of the result (a 95 %
    interval), `limit_ms`, and the `batch` size: 1, unless the model accepts only another. Empty if the budget does
    not limit `latency_ms`."""
    _saved_costs: tuple[Cost | None, Cost | None] | None = field(default=None, repr=False)
    """`costs` of a loaded result as they were saved; `None` for a cost that was not."""

    @property
    def model(self) -> fx.GraphModule:
        """The model that was found: a plain `torch.nn.Module` in eval mode, with the user's parameter names."""
        return self.program.graph_module

    @property
    def cost(self) -> tuple[Cost, Cost]:
        """Costs of the original and of the result."""
        return cost(self.original), cost(self.program)

    @property
    def costs(self) -> tuple[Cost | None, Cost | None]:
        """Costs of the original and of the result; of a loaded result as they were saved, without running anything.

        `None` for a cost that an early version did not save; `cost` counts it.
        """
        return self.cost if self._saved_costs is None else self._saved_costs

    @property
    def log(self) -> tuple[str, ...]:
        """The passes that turn the original's graph into the result's."""
        return self.program.log

    @property
    def example_inputs(self) -> tuple[Any, ...]:
        """Positional example inputs of the model."""
        return self.program.example_inputs

    @property
    def example_kwargs(self) -> Mapping[str, Any]:
        """Keyword example inputs of the model."""
        return self.program.example_kwargs

    @override
    def __repr__(self) -> str:
        before, after = self.costs
        if before is None or after is None:
            numbers = [sum(p.numel() for p in x.graph_module.parameters()) for x in (self.program, self.original)]
            return f"<Result: {numbers[0]:,} of {numbers[1]:,} parameters>"
        return f"<Result: {after.params:,} of {before.params:,} parameters, {after.macs:,} of {before.macs:,} MACs>"

    def summary(self) -> str:
        """Return a table of before, after and ratio, the Pareto front if there is one, and the notes."""
        return report.summary(self)

    @checked(SurgeryError)
    def member(self, number: int) -> "Result":
        """Return the result for `pareto[number]`, to report, export, measure or save that network.

        It has no test metrics, since the test data were used for the selected network, and no history.

        Args:
            number: index into `pareto`.

        Raises:
            SurgeryError: the index is out of range.
        """
        if not 0 <= number < len(self.pareto):
            last = len(self.pareto) - 1
            there = f"numbers 0 to {last}; choose one" if last >= 0 else "no Pareto front; use the result itself"
            raise SurgeryError(f"there is no member {number}: the result has {there}")
        member = self.pareto[number]
        figures = {f"{name} (val)": value for name, value in member.score.figures.items()}
        return replace(
            self,
            program=member.program,
            metrics={"val": BeforeAfter(self.metrics["val"].before, member.metric)} if "val" in self.metrics else {},
            figures={n: BeforeAfter(pair.before, figures[n]) for n, pair in self.figures.items() if n in figures},
            history=(),
            latency={},
            search=self.search and self.search.ending_with(member.trial),
            _saved_costs=self._saved_costs and (self._saved_costs[0], cost_of_member(member)),
        )

    @checked(RunError)
    @plain_surroundings()
    def save(self, folder: FilePath) -> None:
        """Save the result as a folder that `fxsurgery.load` reads; a result that is there is replaced.

        In a distributed run only the first process writes, here and in the other methods that write.

        Args:
            folder: where the result is saved; missing directories are created.

        Raises:
            SavingError: part of a model cannot be saved; the message says which.
            RunError: the folder cannot be written, or holds something else.
        """
        if not leads():
            return
        original, program = self.cost
        save_result(Path(folder), programs_of(self), facts_of(self), {"original": original, "program": program})

    @checked(RunError)
    @plain_surroundings()
    def save_standalone(self, folder: FilePath) -> None:
        """Save the model as Python code, `model.py`, with its weights; it requires only torch.

            from model import load
            model = load()

        The folder is verified in a separate process: same outputs, same parameter names, and a backward step runs.

        Args:
            folder: where the code is saved; missing directories are created.

        Raises:
            SavingError: a module of the model is your own code, which is not copied; the message says which.
            RunError: the folder cannot be written, or holds something else.
        """
        if leads():
            write_standalone(self.program, Path(folder))

    @checked(CaptureError)
    @plain_surroundings()
    def replay(self, original: nn.Module) -> nn.Module:
        """Apply the same surgery to another copy of your model, such as a later checkpoint, and return the new model.

        Its tensors are those of `original`, sliced, so that `load_state_dict(result.model.state_dict())` fits.

        Args:
            original: a model of the same architecture; it is not modified.

        Raises:
            SpecError: `original` is another architecture; the message says where they differ.
            CaptureError: it cannot be captured.
        """
        taken = captured_as(self.original, original, self.original.examples)
        require_same(taken, self.original, "the model given is another architecture")
        again = replay(self.log, taken)
        require_same(again, self.program, "the surgery depends on the weights, and comes out otherwise on these")
        return again.graph_module

    @checked(RunError, latency=DeviceError)
    @plain_surroundings()
    def report(self, path: FilePath, *, latency: LatencyReport | None = None, title: str = "", date: str = "") -> Path:
        """Write a report as one HTML page, which needs no other file and no network.

        Args:
            path: where the page is written; missing directories are created.
            latency: the measurement to show, as `benchmark` returns it.
            title: name of the model; the name of its class by default.
            date: date that the page shows; none by default.

        Returns:
            The path of the page.

        Raises:
            RunError: the file cannot be written.
        """
        if leads():
            report.write(self, path, latency=latency, title=title, date=date)
        return Path(path)

    @checked(ExportError)
    @plain_surroundings()
    def export_onnx(
        self,
        path: FilePath,
        *,
        opset: Opset = None,
        exporter: Exporter = "auto",
        dynamic_batch: bool | None = None,
        transforms: Sequence[Transform] = (),
        check: bool = True,
    ) -> OnnxModel:
        """Export the model to ONNX and compare the file with PyTorch.

        Args:
            path: where the file is written; missing directories are created.
            opset: version of the operator set; the exporter chooses by default.
            exporter: `"dynamo"`, `"legacy"` (ten times as fast, deprecated in PyTorch), or `"auto"`: the first that
                works.
            dynamic_batch: whether the file accepts any batch size; by default where a dim of the inputs is the batch.
            transforms: rewrites of the file, such as `(fxsurgery.deploy.ToFloat16(),)`.
            check: whether to compare the file with PyTorch through ONNX Runtime, at two batch sizes where the batch is
                dynamic. A model that draws random numbers needs `check=False`.

        Returns:
            The file, its inputs and outputs, and how well it agrees with PyTorch.

        Raises:
            ExportError: the export fails, ONNX Runtime disagrees with PyTorch, or the file cannot be written.
        """
        dynamic = self.program.examples.is_resizable if dynamic_batch is None else dynamic_batch
        return EXPORTS.export(
            self.program, Path(path), opset=opset, exporter=exporter, dynamic_batch=dynamic, transforms=transforms,
            check=check,
        )  # fmt: skip

    @checked(DeviceError)
    @plain_surroundings()
    def benchmark(
        self,
        device: str = "local",
        *,
        rounds: int = 200,
        warmup: int = 10,
        threads: int = 1,
        seconds: float = 20.0,
        seed: int = 0,
        loads: int = 5,
    ) -> LatencyReport:
        """Measure original and result side by side on one sample, interleaved in one process, through ONNX Runtime.

        Args:
            device: `"local"` for this machine's CPU, `"cuda"` for its GPU.
            rounds: largest number of measured runs of each model.
            warmup: rounds after each loading that are not measured; they take a fifth of the time at most.
            threads: threads of ONNX Runtime.
            seconds: time limit for the whole measurement.
            seed: seed of the order of the runs and of the bootstrap.
            loads: how often the models are loaded anew.

        Returns:
            Times of both models, and their ratio with its 95 % interval.

        Raises:
            DeviceError: the device does not exist, an option is out of range, or it cannot run the model.
            ExportError: one of the two cannot be exported.
        """
        options = {
            "rounds": rounds, "warmup": warmup, "threads": threads, "seconds": seconds, "seed": seed, "loads": loads,
        }  # fmt: skip
        return compare_programs({"original": self.original, "result": self.program}, device, options)
