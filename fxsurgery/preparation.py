"""Preparation of a run before anything trains: arguments checked, model captured, run directory opened."""

import datetime
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from fxsurgery.argument_names import assigned, entry, keyword, named
from fxsurgery.batch_layout import Statement
from fxsurgery.budget import Budget
from fxsurgery.capture import capture, guess_inputs
from fxsurgery.deploy import Timer, resolve_target
from fxsurgery.errors import CaptureError, DataError, SurgeryError, TrainingError
from fxsurgery.example_inputs import inputs_of
from fxsurgery.execution import JobRunner
from fxsurgery.inputs import Inputs
from fxsurgery.program import Program
from fxsurgery.request import OptimizeRequest
from fxsurgery.request_task import located, task_of
from fxsurgery.run_identity import identity_of
from fxsurgery.runs.examination import require_startable
from fxsurgery.runs.layout import LOGS
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.searchers.common.latency_model import LatencyModel
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.common.width_constraints import WidthConstraints
from fxsurgery.searchers.ectonas import DEFAULT_SPEND
from fxsurgery.searchers.methods import METHODS, Method, method_of
from fxsurgery.training import Progress, Task, resolve
from fxsurgery.training.device import join, processes, require_real
from fxsurgery.training.finite import not_finite, wrong_values
from fxsurgery.training.invocation import addressed
from fxsurgery.training.trackers import tracker_callbacks
from fxsurgery.tuning import Tuning, check_tuning, tuning_of


@dataclass(frozen=True, eq=False)
class PreparedRun:
    """A request that was checked, with the captured model and the open run directory."""

    request: OptimizeRequest
    method: Method
    settings: Settings
    budget: Budget | None
    program: Program
    task: Task | None
    """`None` without data: the task is then synthesized from the model."""
    progress: Progress
    run: RunDir
    latency: LatencyModel | None
    """Latency on the target if the run needs it; a resumed run reuses what was measured before."""
    workshop: JobRunner
    asked: Mapping[str, Any]
    """Identity of the run as plain JSON."""
    constraints: WidthConstraints
    """The widths that the user fixed."""
    notes: tuple[str, ...]
    tuning: Tuning


def prepare(request: OptimizeRequest, *, is_planned: bool = False) -> PreparedRun:
    """Check the arguments, capture the model, and open the run directory.

    Args:
        request: the arguments.
        is_planned: only check that the run could start in the run directory, and leave the directory as it is.

    Raises:
        SurgeryError: one of its children, for each thing that does not fit.
    """
    method, settings = method_of(
        request.method, request.config, request.settings, (f.name for f in fields(OptimizeRequest))
    )
    _check_evolving(request, method)
    check_tuning(request, settings)
    budget = _budget(request, method, settings)
    method.require_goal(budget, settings, has_ratios=bool(request.ratios))
    workshop = _workshop(request)
    timed = getattr(settings, "front", None) == "latency_ms" or (budget is not None and budget.latency_ms is not None)
    device = resolve_target(request.target) if timed else None
    task = task_of(request, method, settings)
    examples, notes = _examples(request, task)
    observers = (*request.observers, *tracker_callbacks(request.loggers, _log_folder(request)))
    progress = Progress(verbose=request.verbose, callbacks=observers)
    for note in notes:
        progress.note(f"note: {note}")
    said = request.batch_dims if task is None else task.batch_dims
    program = _captured(request.model, examples, request.leaf_modules, said, guessed=notes)
    task = located(request, task, program)
    _require_trainable(program, settings, trained=request.trained)
    _require_answers(program, request, task)
    constraints = _constraints(request, program, has_goal=budget is not None or _is_penalized(settings))
    spend = (request.spend or DEFAULT_SPEND) if method.evolves else None
    target = request.target if timed else None
    tuning = tuning_of(request, settings, program, task)
    resolved = {
        "method": method.name, "config": settings, "budget": budget, "spend": spend, "target": target,
        "keep": list(constraints.keep) or None, "ratios": list(map(list, constraints.ratios.items())) or None,
    }  # fmt: skip
    asked = identity_of(request, resolved, program, task)
    run = _run(request, asked, is_planned=is_planned)
    latency = None
    if device is not None:
        latency = LatencyModel(timer=Timer(device, program, request.seed), original=program, budget=budget, run=run)
    notes = (*notes, *run.notes, *constraints.notes(program))
    return PreparedRun(
        request, method, settings, budget, program, task, progress, run, latency, workshop, asked, constraints, notes,
        tuning,
    )  # fmt: skip


def _log_folder(request: OptimizeRequest) -> Path:
    """Return where loggers write that need a folder: in the run directory, else one for each run in the current one."""
    if request.run_dir is not None:
        return Path(request.run_dir) / LOGS
    return Path("fxsurgery-logs") / datetime.datetime.now(tz=datetime.UTC).strftime("%Y-%m-%d_%H-%M-%S")


def _constraints(request: OptimizeRequest, program: Program, *, has_goal: bool) -> WidthConstraints:
    """Return the layers that `keep` and `ratios` stand for; `has_goal`: whether the other widths are to shrink."""
    return WidthConstraints.of(request.model, program, request.kept, request.ratios, has_goal=has_goal)


def _workshop(request: OptimizeRequest) -> JobRunner:
    """Return the runner of jobs, after checking that its devices exist."""
    where = resolve(request.device)
    workshop = JobRunner(request.executor, request.workers, request.device)
    workshop.check()
    require_real(where)
    if processes() > 1:
        join(where)
    return workshop


def _run(request: OptimizeRequest, asked: Mapping[str, Any], *, is_planned: bool) -> RunDir:
    if request.resume and request.run_dir is None:
        resume = assigned("resume", value=True)
        raise SurgeryError(f"{resume} continues the run of a directory: pass {keyword('run_dir')} as well").at("resume")
    if request.run_dir is None:
        return RunDir()
    if is_planned:
        return RunDir(notes=require_startable(Path(request.run_dir), asked, resume=request.resume))
    return RunDir.open(request.run_dir, asked, resume=request.resume)


def _check_evolving(request: OptimizeRequest, method: Method) -> None:
    """Refuse arguments that apply only to methods that train many networks."""
    if request.ratios and method.evolves:
        raise SurgeryError(
            f"{keyword('ratios')} is not for {assigned('method', method.name)}, which grows and shrinks widths move by "
            f"move: leave it out; {keyword('keep')} works"
        ).at("ratios")
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
    """Return the budget that was given; else half the MACs if the method needs a budget and there are no ratios."""
    if request.budget is not None or method.evolves or _is_penalized(settings) or request.ratios:
        return request.budget
    return Budget(macs=0.5)


def _is_penalized(settings: Settings) -> bool:
    """Return True if a fixed penalty takes the place of the budget."""
    return getattr(settings, "penalty", None) is not None


def _examples(request: OptimizeRequest, task: Task | None) -> tuple[Inputs, tuple[str, ...]]:
    if request.example_inputs is not None or request.example_kwargs is not None:
        return inputs_of(request.model, request.example_inputs, request.example_kwargs), ()
    if task is not None:
        return addressed(request.model, task.capture_examples()), ()
    guessed, how = guess_inputs(request.model)
    return guessed, (how,)


def _require_trainable(program: Program, settings: Settings, *, trained: bool) -> None:
    if broken := not_finite(program.graph_module):
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise TrainingError(
            f"the model's weights are not numbers (NaN): {', '.join(broken[:3])}{more} hold NaN or infinite values; "
            "load an intact checkpoint"
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
    """Refuse example inputs with NaN or infinite values that make the outputs not finite."""
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
        raise CaptureError(f"{error}\n  The example inputs were inferred: {'; '.join(guessed)}") from error
