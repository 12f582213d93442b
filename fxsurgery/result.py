"""What `optimize` gives back: the model, what it costs and scores, and how it came about."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import fx, nn
from typing_extensions import override

from fxsurgery import report
from fxsurgery.analysis.cost import cost
from fxsurgery.budget import Cost
from fxsurgery.capture import capture
from fxsurgery.capture.attention import is_plain
from fxsurgery.capture.tracer import COMPOSED
from fxsurgery.deploy import LatencyReport, OnnxModel, export_onnx, resolve_target
from fxsurgery.errors import RunError, SpecError, SurgeryError
from fxsurgery.passes import replay
from fxsurgery.program import Program
from fxsurgery.saving import load_facts, load_programs, save_result, write_standalone
from fxsurgery.searchers.beginning import CONFIG, RESULT
from fxsurgery.searchers.evolution import Evolution, Member, as_plain, member_as_plain, member_of_plain, of_plain
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
class Result:
    """The end of an optimisation. Everything here is plain data or plain modules."""

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
    evolution: Evolution | None = None
    """What an evolutionary search went through."""
    pareto: tuple[Member, ...] = ()
    """What an evolutionary search found on the way that no other network beats at its cost, the cheapest first."""
    _files: dict[str, OnnxModel] = field(default_factory=dict, repr=False)

    @property
    def model(self) -> fx.GraphModule:
        """The model that was found: a plain `torch.nn.Module` in eval mode, with the user's parameter names."""
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

    @override
    def __repr__(self) -> str:
        before, after = self.cost
        return f"<Result: {after.params:,} of {before.params:,} parameters, {after.macs:,} of {before.macs:,} MACs>"

    def summary(self) -> str:
        """A table of before, after and ratio, that of the Pareto front where there is one, and the notes."""
        return report.summary(self)

    def member(self, number: int) -> "Result":
        """The result as it would be with `pareto[number]` as its end: to report, export, measure or save that one.

        It has no test figures, since the test data were looked at for the one that was chosen, and no history.

        Raises:
            SurgeryError: there is no such member.
        """
        if not 0 <= number < len(self.pareto):
            there = f"numbers 0 to {len(self.pareto) - 1}" if self.pareto else "no Pareto front"
            raise SurgeryError(f"there is no member {number}: the result has {there}")
        member = self.pareto[number]
        figures = {f"{name} (val)": value for name, value in member.score.figures.items()}
        return replace(
            self,
            program=member.program,
            metrics={"val": BeforeAfter(self.metrics["val"].before, member.metric)} if "val" in self.metrics else {},
            figures={n: BeforeAfter(pair.before, figures[n]) for n, pair in self.figures.items() if n in figures},
            history=(),
            evolution=self.evolution and self.evolution.ending_with(member.candidate),
            _files={},
        )

    @plain_surroundings()
    def save(self, folder: str | Path) -> None:
        """Write everything as a folder that `fxsurgery.load` reads; a result that was there is replaced.

        Of a distributed run the first process alone writes, here and in the other methods that do.

        Raises:
            SavingError: something of the models cannot be written; it says what.
            RunError: the folder cannot be written to, or holds something else.
        """
        if not leads():
            return
        facts = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {*_PROGRAMS, *_EVOLVED, "_files"}}
        for name in ("metrics", "figures"):
            facts[name] = {what: (pair.before, pair.after) for what, pair in getattr(self, name).items()}
        programs = {name: getattr(self, name) for name in _PROGRAMS}
        if self.evolution is not None:
            facts["evolution"] = as_plain(self.evolution)
        if self.pareto:
            facts["pareto"] = [member_as_plain(member) for member in self.pareto]
            programs |= {_member(i): member.program for i, member in enumerate(self.pareto)}
        save_result(Path(folder), programs, facts)

    @plain_surroundings()
    def save_standalone(self, folder: str | Path) -> None:
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

    @plain_surroundings()
    def replay(self, original: nn.Module) -> nn.Module:
        """The same surgery on another copy of your model, such as a later checkpoint; `original` is left alone.

        The tensors are those of `original`, cut alike, so `load_state_dict(result.model.state_dict())` fits.

        Raises:
            SpecError: `original` is another architecture; it says where they differ.
            CaptureError: it cannot be captured.
        """
        tensor = next((t for t in (*original.parameters(), *original.buffers())), None)
        examples = self.original.examples
        if tensor is not None:
            examples = examples.map(lambda x: x.to(tensor.device))
        taken = capture(
            original, *examples.args, leaf_modules=_kept_whole(self.original), example_kwargs=dict(examples.kwargs)
        )
        _require_same(taken, self.original, "the model given is another architecture")
        again = replay(self.log, taken)
        _require_same(again, self.program, "the surgery depends on the weights, and comes out otherwise on these")
        return again.graph_module

    @plain_surroundings()
    def report(self, path: str | Path, **options: Any) -> Path:  # noqa: ANN401
        """Write what was asked and what came out as one HTML page, which needs no other file and no network.

        Args:
            path: where the page goes.
            options: as of `fxsurgery.report.write`: `latency`, what `benchmark` gave, `title` and `date`.

        Raises:
            RunError: the file cannot be written.
        """
        return report.write(self, path, **options) if leads() else Path(path)

    @plain_surroundings()
    def export_onnx(self, path: str | Path, **options: Any) -> OnnxModel:  # noqa: ANN401
        """Export the model to ONNX and check it against PyTorch at two batch sizes.

        Args:
            path: where the file goes.
            options: as of `fxsurgery.deploy.export_onnx` (`opset`, `exporter`, ...).

        Raises:
            ExportError: the export fails, or ONNX Runtime disagrees with PyTorch.
        """
        return export_onnx(self.model, self.example_inputs, path, example_kwargs=self.example_kwargs, **options)

    @plain_surroundings()
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


@plain_surroundings()
def load(folder: str | Path, *, original: nn.Module | None = None) -> Result:
    """What `Result.save` wrote, on the CPU. Nothing of the folder is run.

    Args:
        folder: the folder, or the directory of a run that has ended.
        original: your model, where modules of it were kept whole: these are copied from it, and get saved weights.

    Raises:
        RunError: there is no result, it is damaged or of a later version, or it wants `original`; it says what to do.
        SavingError: it asks for what loading does not do.
    """
    folder = Path(folder)
    if (folder / CONFIG).is_file() and (folder / RESULT).is_dir():
        folder /= RESULT
    facts = load_facts(folder)
    known = {f.name for f in fields(Result)} - {"_files"}
    given: dict[str, Any] = {name: value for name, value in facts.items() if name in known}
    try:
        given["metrics"] = {split: BeforeAfter(*pair) for split, pair in facts["metrics"].items()}
        given["figures"] = {name: BeforeAfter(*pair) for name, pair in facts.get("figures", {}).items()}
        given["evolution"] = of_plain(facts["evolution"]) if "evolution" in facts else None
        members = list(facts.get("pareto", ()))
        programs = load_programs(folder, (*_PROGRAMS, *map(_member, range(len(members)))), original)
        given |= {name: programs[name] for name in _PROGRAMS}
        given["pareto"] = tuple(member_of_plain(m, programs[_member(i)]) for i, m in enumerate(members))
        return Result(**given)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise RunError(f"{folder} is damaged: {error}") from error


_PROGRAMS = ("program", "original")
_EVOLVED = ("evolution", "pareto")


def _member(number: int) -> str:
    """The folder of a program of the front."""
    return f"pareto/{number}"


def _kept_whole(program: Program) -> tuple[type[nn.Module], ...]:
    """The types of module that the capture did not look into, beside torch's own layers."""
    kinds = dict[type[nn.Module], None]()
    for _, module in program.calls(nn.Module):
        torchs = type(module).__module__.startswith("torch.")
        if (
            not torchs
            or isinstance(module, COMPOSED)
            or (isinstance(module, nn.MultiheadAttention) and is_plain(module))
        ):
            kinds[type(module)] = None
    return tuple(kinds)


def _require_same(found: Program, wanted: Program, what: str) -> None:
    shapes = [{n: tuple(t.shape) for n, t in p.graph_module.state_dict().items()} for p in (found, wanted)]
    for name in {**shapes[1], **shapes[0]}:
        here, there = (f"{s[name]}" if name in s else "missing" for s in shapes)
        if here != there:
            raise SpecError(f"{what}: `{name}` is {here} here and {there} in the result")
