"""What `optimize` gives back: the model, what it costs and scores, and how it came about."""

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
from fxsurgery.result_facts import facts_of, programs_of
from fxsurgery.saving import save_result, write_standalone
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training.device import leads


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
class Result(report.NotebookView):
    """The end of an optimization. Everything here is plain data or plain modules."""

    program: Program
    """The program that was found: its graph, example inputs and log."""
    original: Program
    """The user's model as it was captured."""
    metric_name: str
    metrics: Mapping[str, BeforeAfter]
    """The metric of the original, trained, and of the result: `val`, and `test` where test data was given.

    `val, not fine-tuned`, which an evolutionary search has not, has the result's right after the surgery instead."""
    figures: Mapping[str, BeforeAfter] = field(default_factory=dict)
    """The other numbers that the metric gives, where it gives several: `pixel accuracy (val)`."""
    notes: tuple[str, ...] = ()
    """What a user should know: widths that stayed, gates that were undecided, parts left alone and why."""
    history: tuple[Mapping[str, Any], ...] = ()
    """The training curves, one record a report."""
    gates: tuple[float, ...] = ()
    seed: int = 0
    asked: Mapping[str, Any] = field(default_factory=dict)
    """What was asked for, plain JSON: `method`, `settings`, `budget`, `trained`, `data_free`, `environment`, ..."""
    search: SearchRecord | None = None
    """The trials of a search that trains many networks, such as ECToNAS."""
    pareto: tuple[ParetoMember, ...] = ()
    """What an evolutionary search found on the way that no other network beats at its cost, the cheapest first."""
    latency: Mapping[str, float] = field(default_factory=dict)
    """What a budget of `latency_ms` was held by, measured side by side on the target: `original_ms`, `ms`, `low_ms`
    and `high_ms` of the result (a 95 % interval), `limit_ms`, and the `batch` size that was measured: 1, unless the
    model takes another one only. Empty where the budget has no such limit."""
    _saved_costs: tuple[Cost | None, Cost | None] | None = field(default=None, repr=False)
    """Of a result that was loaded, what was saved of `costs`: `None` for what was not."""

    @property
    def model(self) -> fx.GraphModule:
        """The model that was found: a plain `torch.nn.Module` in eval mode, with the user's parameter names."""
        return self.program.graph_module

    @property
    def cost(self) -> tuple[Cost, Cost]:
        """What the original takes, and what the result takes."""
        return cost(self.original), cost(self.program)

    @property
    def costs(self) -> tuple[Cost | None, Cost | None]:
        """The same without running anything of a result that was loaded: as it was saved.

        `None` where it was not, by an early version; `cost` counts it.
        """
        return self.cost if self._saved_costs is None else self._saved_costs

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

    @override
    def __repr__(self) -> str:
        before, after = self.costs
        if before is None or after is None:
            numbers = [sum(p.numel() for p in x.graph_module.parameters()) for x in (self.program, self.original)]
            return f"<Result: {numbers[0]:,} of {numbers[1]:,} parameters>"
        return f"<Result: {after.params:,} of {before.params:,} parameters, {after.macs:,} of {before.macs:,} MACs>"

    def summary(self) -> str:
        """A table of before, after and ratio, that of the Pareto front where there is one, and the notes."""
        return report.summary(self)

    @checked(SurgeryError)
    def member(self, number: int) -> "Result":
        """The result as it would be with `pareto[number]` as its end: to report, export, measure or save that one.

        It has no test figures, since the test data were looked at for the one that was chosen, and no history.

        Raises:
            SurgeryError: there is no such member.
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
            _saved_costs=self._saved_costs and (self._saved_costs[0], _cost_of(member)),
        )

    @checked(RunError)
    @plain_surroundings()
    def save(self, folder: FilePath) -> None:
        """Write everything as a folder that `fxsurgery.load` reads; a result that was there is replaced.

        Of a distributed run the first process alone writes, here and in the other methods that do.

        Raises:
            SavingError: something of the models cannot be written; it says what.
            RunError: the folder cannot be written to, or holds something else.
        """
        if not leads():
            return
        original, program = self.cost
        save_result(Path(folder), programs_of(self), facts_of(self), {"original": original, "program": program})

    @checked(RunError)
    @plain_surroundings()
    def save_standalone(self, folder: FilePath) -> None:
        """Write the model as Python code of its own, `model.py`, with its weights: it needs torch and nothing else.

        The folder is proven in a process of its own: same outputs, same parameter names, and a backward step runs.

            from model import load
            model = load()

        Raises:
            SavingError: a module of the model is code of yours, which is not copied; it says which.
            RunError: the folder cannot be written to, or holds something else.
        """
        if leads():
            write_standalone(self.program, Path(folder))

    @checked(CaptureError)
    @plain_surroundings()
    def replay(self, original: nn.Module) -> nn.Module:
        """The same surgery on another copy of your model, such as a later checkpoint; `original` is left alone.

        The tensors are those of `original`, cut alike, so `load_state_dict(result.model.state_dict())` fits.

        Raises:
            SpecError: `original` is another architecture; it says where they differ.
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


def _cost_of(member: ParetoMember) -> Cost:
    """What a member takes, as it was noted in the search."""
    return Cost(params=int(member.trial.costs["params"]), macs=int(member.trial.costs["macs"]))
