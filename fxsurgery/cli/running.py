"""Run `fxsurgery optimize`: plan, or optimize and write the requested files."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from typing_extensions import override

import fxsurgery
from fxsurgery.cli.data import callable_of, data_of, function_of, metric_of
from fxsurgery.cli.errors import resumable, say
from fxsurgery.cli.export import line
from fxsurgery.cli.sources import Wanted, module_class, teacher_of
from fxsurgery.cli.validation import check_outputs
from fxsurgery.config import RunConfig, flag
from fxsurgery.deploy import OnnxModel
from fxsurgery.errors import SurgeryError
from fxsurgery.plan import Plan
from fxsurgery.printable import lines
from fxsurgery.request import PlainArguments
from fxsurgery.result import Result
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.training import from_rank_zero


@dataclass(frozen=True)
class Kept:
    """The files of a result that were written."""

    paths: Mapping[str, Path]
    """Path by the name of the flag that requested it."""
    onnx: OnnxModel | None
    failures: tuple[str, ...]
    """Why other requested files were not written."""


@dataclass(frozen=True, eq=False)
class Done:
    """A result and the files that were written."""

    result: Result
    kept: Kept

    @override
    def __str__(self) -> str:
        files = dict[str, object](self.kept.paths)
        if self.kept.onnx is not None:
            files["onnx"] = line(self.kept.onnx)
        return f"{self.result.summary()}\n{lines(f'{name}: {path}' for name, path in files.items())}".rstrip("\n")


def dry(config: RunConfig, settings: Settings) -> Plan:
    """Return the plan of a run.

    Raises:
        SurgeryError: `run` would raise it before training.
    """
    model, arguments = _arguments(config, settings)
    return fxsurgery.plan(model, **arguments, verbose=False)


def run(config: RunConfig, settings: Settings, *, verbose: bool) -> Done:
    """Optimize and write the files that the config requests.

    Raises:
        SurgeryError: a subclass that says what failed.
    """
    model, arguments = _arguments(config, settings)
    _warn(config)
    with resumable(config.run_dir):
        result = fxsurgery.optimize(model, **arguments, verbose=verbose)
    return Done(result, from_rank_zero(lambda: _keep(config, result), config.device))


def as_plain(shown: object) -> object:
    """Return a plan or a finished run as plain data for JSON."""
    if isinstance(shown, Plan):
        return asdict(shown)
    if not isinstance(shown, Done):
        return shown
    result = shown.result
    before, after = result.cost
    costs = {name: {"before": getattr(before, name), "after": getattr(after, name)} for name in ("params", "macs")}
    return {
        "cost": {name: {**pair, "ratio": pair["after"] / max(pair["before"], 1)} for name, pair in costs.items()},
        "metric": result.metric_name,
        "metrics": {split: {**vars(pair), "ratio": pair.ratio} for split, pair in result.metrics.items()},
        "notes": list(result.notes),
        "log": list(result.log),
        "seed": result.seed,
        "kept": dict(shown.kept.paths),
        "onnx": None if shown.kept.onnx is None else asdict(shown.kept.onnx),
        "failures": list(shown.kept.failures),
        **_evolved(result),
    }


def _evolved(result: Result) -> dict[str, Any]:
    """Return the search and its Pareto front, for a method that trains many networks."""
    record = result.search
    if record is None:
        return {}
    counts = {name: getattr(record, name) for name in ("spent", "allowed", "rejected", "duplicates", "lost_workers")}
    front = [
        {
            "metric": member.metric,
            "latency_ms": None,
            **member.trial.costs,
            "chosen": record.is_winner(member.trial),
            "done": [trial.operation for trial in record.changes(member.trial.number)],
        }
        for member in result.pareto
    ]
    return {"search": {"networks": record.trained, **counts}, "pareto": front}


def _arguments(config: RunConfig, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """Return the model and the other arguments of `fxsurgery.optimize`."""
    check_outputs(config)
    loaded = Wanted(
        config.model, config.model_args, config.weights, config.example_shape, config.example_inputs, config.seed,
        config.original,
    ).load()  # fmt: skip
    inputs = loaded.inputs
    data = {
        name: data_of(text, flag(name), config.seed)
        for name in ("train_data", "val_data", "test_data")
        if (text := getattr(config, name)) is not None
    }
    plain = {f.name: said for f in fields(PlainArguments) if (said := getattr(config, f.name)) != f.default}
    readers = {"loss": callable_of, "metric": metric_of, "finetune": function_of, "teacher": teacher_of}
    called = {name: read(text, flag(name)) for name, read in readers.items() if (text := getattr(config, name))}
    return loaded.model, {
        **plain,
        **data,
        **called,
        "config": settings,
        "loggers": config.loggers,
        "keep": config.keep,
        "ratios": config.ratios or None,
        "leaf_modules": tuple(map(module_class, config.leaf_modules)),
        "example_inputs": None if inputs is None else inputs.args,
        "example_kwargs": None if inputs is None else inputs.kwargs,
    }


def _warn(config: RunConfig) -> None:
    if config.train_data is None and config.val_data is None:
        say(
            "WITHOUT DATA: no --train-data and --val-data, so synthetic inputs are used and the model learns from its "
            "own outputs. Fine-tune the result on your data before you use it.",
            "yellow",
        )
    if not any((config.run_dir, config.out, config.standalone, config.onnx)):
        say("note: the result will not be saved; pass --out DIR or --onnx FILE to keep it", "yellow")


def _keep(config: RunConfig, result: Result) -> Kept:
    """Write all requested files: a file that cannot be written must not prevent the others."""
    kept, failures, files = dict[str, Path](), list[str](), list[OnnxModel]()
    steps: tuple[tuple[str, Path | None, Callable[[Path], object]], ...] = (
        ("out", config.out, result.save),
        ("standalone", config.standalone, result.save_standalone),
        ("onnx", config.onnx, lambda path: files.append(result.export_onnx(path))),
        ("report", config.report, result.report),
    )
    for name, path, keep in steps:
        if path is None:
            continue
        try:
            keep(path)
            kept[name] = path
        except SurgeryError as error:
            failures.append(f"--{name}: {error}")
    if config.run_dir is not None:
        kept["run"] = config.run_dir
    return Kept(kept, next(iter(files), None), tuple(failures))
