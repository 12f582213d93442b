"""What a user asks of `optimize`, made ready before anything trains: checked, captured, with its run directory open."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from fxsurgery.argument_names import assigned, entry, keyword, named, usage
from fxsurgery.batch_layout import Statement, by_position, statement_of
from fxsurgery.budget import Budget
from fxsurgery.capture import capture, guess_inputs
from fxsurgery.deploy import Timer, resolve_target
from fxsurgery.errors import CaptureError, DataError, SurgeryError, TrainingError
from fxsurgery.example_inputs import inputs_of
from fxsurgery.execution import JobRunner
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program
from fxsurgery.request import OptimizeRequest
from fxsurgery.run_identity import identity_of
from fxsurgery.runs.layout import LOGS
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.searchers.common.latency_model import LatencyModel
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.ectonas import DEFAULT_SPEND
from fxsurgery.searchers.methods import METHODS, Method, method_of
from fxsurgery.training import Progress, Task, resolve
from fxsurgery.training.device import join, processes, require_real
from fxsurgery.training.evaluate import require_ends
from fxsurgery.training.finite import not_finite, wrong_values
from fxsurgery.training.invocation import addressed
from fxsurgery.training.trackers import tracker_callbacks
from fxsurgery.tuning import Tuning, check_tuning, tuning_of

_DATA_LINE = "fxsurgery.optimize(model, {}train_data=(images, labels), val_data=(images, labels))"


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """What was asked for, made ready."""

    request: OptimizeRequest
    method: Method
    settings: Settings
    budget: Budget | None
    program: Program
    task: Task | None
    """`None` where there are no data: the task is then made of the model."""
    progress: Progress
    run: RunDir
    latency: LatencyModel | None
    """The latency on the target, where it matters; as it was measured before a kill."""
    workshop: JobRunner
    asked: Mapping[str, Any]
    """What was asked for as plain JSON."""
    notes: tuple[str, ...]
    tuning: Tuning


def prepare(request: OptimizeRequest) -> PreparedRun:
    """Check what can be checked, capture the model, and open the run directory.

    Raises:
        SurgeryError: one of its children, for each thing that does not fit.
    """
    beside = (f.name for f in fields(OptimizeRequest))
    method, settings = method_of(request.method, request.config, request.settings, beside)
    _check_evolving(request, method)
    check_tuning(request, settings)
    budget = _budget(request, method, settings)
    workshop = _workshop(request)
    timed = getattr(settings, "front", None) == "latency_ms" or (budget is not None and budget.latency_ms is not None)
    device = resolve_target(request.target) if timed else None
    task = _with_end(_task(request, method, settings))
    examples, notes = _examples(request, task)
    observers = (*request.callbacks, *tracker_callbacks(request.loggers, _log_folder(request)))
    progress = Progress(verbose=request.verbose, callbacks=observers)
    for note in notes:
        progress.note(f"note: {note}")
    said = request.batch_dims if task is None else task.batch_dims
    program = _captured(request.model, examples, request.leaf_modules, said, guessed=notes)
    task = _located(request, task, program)
    _require_trainable(program, settings, trained=request.trained)
    _require_answers(program, request, task)
    spend = (request.spend or DEFAULT_SPEND) if method.evolves else None
    target = request.target if timed else None
    tuning = tuning_of(request, settings, program, task)
    resolved = {"method": method.name, "config": settings, "budget": budget, "spend": spend, "target": target}
    asked = identity_of(request, resolved, program, task)
    run = _run(request, asked)
    latency = None
    if device is not None:
        latency = LatencyModel(timer=Timer(device, program, request.seed), original=program, budget=budget, run=run)
    notes = (*notes, *run.notes)
    return PreparedRun(
        request, method, settings, budget, program, task, progress, run, latency, workshop, asked, notes, tuning
    )


def _log_folder(request: OptimizeRequest) -> Path:
    """Return where loggers write that need a folder: in the run directory, else one for each run in the current one."""
    if request.run_dir is not None:
        return Path(request.run_dir) / LOGS
    return Path("fxsurgery-logs") / datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d_%H-%M-%S")


def _workshop(request: OptimizeRequest) -> JobRunner:
    """Where jobs run, on devices that are there."""
    where = resolve(request.device)
    workshop = JobRunner(request.executor, request.workers, request.device)
    workshop.check()
    require_real(where)
    if processes() > 1:
        join(where)
    return workshop


def _run(request: OptimizeRequest, asked: Mapping[str, Any]) -> RunDir:
    if request.resume and request.run_dir is None:
        resume = assigned("resume", value=True)
        raise SurgeryError(f"{resume} continues the run of a directory: pass {keyword('run_dir')} as well").at("resume")
    return RunDir() if request.run_dir is None else RunDir.open(request.run_dir, asked, resume=request.resume)


def _check_evolving(request: OptimizeRequest, method: Method) -> None:
    """Refuse what only a method that trains many networks can follow."""
    given = [n for n in ("spend", "executor", "workers") if getattr(request, n) != getattr(OptimizeRequest, n)]
    if given and not method.evolves:
        others = ", ".join(assigned("method", m.name) for m in METHODS.values() if m.evolves)
        raise SurgeryError(
            f"{keyword(given[0])} is for {others}, which trains many networks; leave it out, since "
            f"{assigned('method', method.name)} trains one, for as many epochs as its settings say"
        ).at(given[0])
    if request.workers is not None and request.executor == "in-process":
        raise SurgeryError(
            f"{keyword('workers')} is for {assigned('executor', 'processes')} or 'ray'; leave it out, since one "
            "network trains at a time in-process"
        ).at("workers")


def _budget(request: OptimizeRequest, method: Method, settings: Settings) -> Budget | None:
    """What was given; half the MACs where a method needs one."""
    if request.budget is not None or method.evolves or getattr(settings, "penalty", None) is not None:
        return request.budget
    return Budget(macs=0.5)


def _task(request: OptimizeRequest, method: Method, settings: Settings) -> Task | None:
    if isinstance(request.train_data, Task):
        if given := _given(request, "val_data", "test_data", "loss", "metric", "batch_dims"):
            raise DataError(
                f"{named('train_data')} is a Task, which holds these already: leave {_listed(given)} out"
            ).at(given[0])
        return request.train_data
    if not request.data_free:
        _require_data(request)
        task = Task.of(
            request.train_data, request.val_data, test_data=request.test_data, loss=request.loss,
            metric=request.metric, batch_size=request.batch_size, seed=request.seed,
        )  # fmt: skip
        return task if request.batch_dims is None else _stated(request, task)
    line = _data_line(request, method, settings)
    if reason := method.needs_data(settings):
        raise DataError(f"{reason}. With data: {line}")
    if not request.trained:
        raise DataError(f"{assigned('trained', value=False)} trains the weights, which needs data: {line}").at(
            "trained"
        )
    if given := _given(request, "test_data", "loss", "metric"):
        data = f"{named('train_data')} and {named('val_data')}"
        raise DataError(f"{_listed(given)} without {data}: leave them out, or {line}").at(given[0])
    return None


def _with_end(task: Task | None) -> Task | None:
    """Return the task, whose validation and test data were checked to end."""
    if task is not None:
        require_ends(task)
    return task


def _given(request: OptimizeRequest, *names: str) -> list[str]:
    return [name for name in names if getattr(request, name) is not None]


def _listed(names: list[str]) -> str:
    return ", ".join(map(named, names))


def _data_line(request: OptimizeRequest, method: Method, settings: Settings) -> str:
    """How to call with data."""
    method_named = "" if request.method is None else f'method="{method.name}", '
    beside = method_named if request.config is None else f"config={type(settings).__name__}(...), "
    return usage(_DATA_LINE.format(beside), "train_data", "val_data", call=True)


def _stated(request: OptimizeRequest, task: Task) -> Task:
    """The task with the batch where the user states it, by the names of the model's parameters too."""
    inputs, _ = task.take_apart(task.first_batch())
    names = inputs.names(request.model.forward)[: len(inputs.args)]
    return replace(task, batch_dims=by_position(request.batch_dims, names))


def _require_data(request: OptimizeRequest) -> None:
    missing = [name for name in ("train_data", "val_data") if getattr(request, name) is None]
    if missing:
        line = usage(_DATA_LINE.format(""), "train_data", "val_data", call=True)
        raise DataError(
            f"{named(missing[0])} is missing: {line}, each a tuple of tensors, a Dataset or a DataLoader; or give "
            "neither, to work without data"
        ).at(missing[0])


def _examples(request: OptimizeRequest, task: Task | None) -> tuple[Inputs, tuple[str, ...]]:
    if request.example_inputs is not None or request.example_kwargs is not None:
        return inputs_of(request.model, request.example_inputs, request.example_kwargs), ()
    if task is not None:
        return addressed(request.model, task.capture_examples()), ()
    guessed, how = guess_inputs(request.model)
    return guessed, (how,)


def _located(request: OptimizeRequest, task: Task | None, program: Program) -> Task | None:
    """The task with the batch where the captured model has it, of the same inputs; as stated where it is."""
    if (
        task is None
        or task.batch_dims is not None
        or request.example_inputs is not None
        or request.example_kwargs is not None
    ):
        return task
    if program.batch_dims is None or program.batch_dims == replace(program.examples, batch_dims=None).dims:
        return task
    said = statement_of(program.examples)
    by_name = task.capture_examples().kwargs and not program.example_kwargs
    return replace(task, batch_dims=said[0] if by_name else said)  # a dict by name may be the model's one input


def _require_trainable(program: Program, settings: Settings, *, trained: bool) -> None:
    if broken := not_finite(program.graph_module):
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise TrainingError(
            f"the model's weights are not numbers (NaN): {', '.join(broken[:3])}{more} hold NaN or infinite values; "
            "load a checkpoint that is whole"
        )
    if trained and settings.finetune_epochs <= 0:
        return
    parameters = list(program.graph_module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        raise TrainingError(
            "every parameter of the model is frozen, so nothing could be fine-tuned: call model.requires_grad_(True), "
            f"or skip fine-tuning with {entry('settings', 'finetune_epochs', 0)}"
        )


def _require_answers(program: Program, request: OptimizeRequest, task: Task | None) -> None:
    """Refuse example inputs that are not finite and make the outputs so."""
    is_given = task is None or request.example_inputs is not None
    source = "the example inputs" if is_given else named("train_data")
    wrong = wrong_values(tuple(program.examples.tensors))
    if wrong and any(map(wrong_values, program.run_examples())):
        raise DataError(
            f"{source}: the model's outputs on the first samples are not finite, since {wrong}; clean the data"
        )


def _captured(
    model: nn.Module,
    examples: Inputs,
    leaf_modules: tuple[type[nn.Module], ...],
    batch_dims: Statement,
    *,
    guessed: tuple[str, ...],
) -> Program:
    try:
        return capture(model, examples, leaf_modules=leaf_modules, batch_dims=batch_dims)
    except CaptureError as error:
        if not guessed:
            raise
        raise CaptureError(f"{error}\n  What it is called with was a guess: {'; '.join(guessed)}") from error
