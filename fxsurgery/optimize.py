"""`optimize` and `plan`, the main functions of the package."""

import datetime
from dataclasses import replace
from pathlib import Path

from fxsurgery.analysis.cost import unknown_macs_notes
from fxsurgery.argument_names import assigned
from fxsurgery.datafree import foreseen_task, made_task
from fxsurgery.errors import BudgetError, SavingError
from fxsurgery.front_door import front_door
from fxsurgery.plan import CostRange, Plan, check, estimate, parallel_note, reach, space_of
from fxsurgery.preparation import PreparedRun, prepare
from fxsurgery.request import OptimizeRequest, Signature
from fxsurgery.result import Result
from fxsurgery.result_facts import BeforeAfter
from fxsurgery.result_notes import latency_note, latency_of, left_alone
from fxsurgery.runs.layout import REPORT
from fxsurgery.runs.records import is_text
from fxsurgery.searchers.common.best_model import unwritable, unwritten
from fxsurgery.searchers.common.widths import Space
from fxsurgery.searchers.session import SearchOutcome, Session, Stage
from fxsurgery.searchers.trainer import Trainer
from fxsurgery.searchers.training_mode import plain_mode, with_fastest_mode
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.time_estimate import Stopwatch
from fxsurgery.training import Progress, Score, Task


@front_door(Signature)
@plain_surroundings()
def optimize(request: OptimizeRequest) -> Result:
    """Make `model` smaller, or more accurate at its cost. The model passed in is not modified.

    Without data, `optimize(model)` synthesizes inputs from the model: their shape is inferred from the first layer, and
    they match the running statistics of its batch norms. It is trained on the outputs of the original, and the result
    reports how well both agree. Fine-tune such a result on your data.

    Args:
        request: the arguments that `fxsurgery.request.Arguments` declares, and single settings by name.

    Returns:
        The new model with its cost, metrics and surgery log.

    Raises:
        ArgumentError: an argument does not exist; the message names the one meant.
        CaptureError: the model cannot be captured as a graph; the message names file and line.
        BudgetError: the budget cannot be reached; the message says what can.
        StructureError: nothing can be removed from the model; the message says why.
        DataError: the data does not fit the model.
        TrainingError: training failed, e.g. the loss is not finite.
        DeviceError: the device does not exist.
        RunError: the run directory cannot be written, holds another run, or is in use by another process.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxsurgery import Budget
        >>> images, labels = torch.randn(8, 3, 8, 8), torch.arange(8) % 4
        >>> model = nn.Sequential(
        ...     nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
        ... )
        >>> result = optimize(
        ...     model, train_data=(images, labels), val_data=(images, labels), budget=Budget(macs="50%"), verbose=False,
        ...     fewest_steps=1, most_steps=1,
        ... )
        >>> result.model(images).shape
        torch.Size([8, 4])
    """
    ready = prepare(request)
    with ready.run:
        return _optimized(ready)


def _optimized(ready: PreparedRun) -> Result:
    found = space_of(ready)
    if done := ready.run.done:
        plural = "" if done == 1 else "s"
        ready.progress.note(f"resuming {ready.run.path}: reusing {done} finished step{plural}")
    _announce(ready, found)
    check(ready, found)
    with ready.progress.callbacks.run(ready.method.name, ready.asked) as scalars:
        session, notes = _session(ready)
        trained = ready.request.trained
        outcome = ready.method.search(ready.program, ready.budget, ready.settings, session, trained=trained)
        _require_fast(ready, outcome)
        result = _result(ready, session, outcome, notes)
        scalars.update(_scalars(result))
    unsaved = ready.run.finish(lambda folder: _kept(result, folder), ready.progress.note)
    return result if unsaved is None else replace(result, notes=(*result.notes, unsaved))


def _scalars(result: Result) -> dict[str, float]:
    """Return the scores and costs of a result by name, for callbacks."""
    before, after = result.cost
    scalars = {f"{split}/{result.metric_name}": pair.after for split, pair in result.metrics.items()}
    for name in ("params", "macs"):
        scalars |= {name: getattr(after, name), f"{name}_ratio": getattr(after, name) / max(getattr(before, name), 1)}
    return {**scalars, **({"latency_ms": result.latency["ms"]} if result.latency else {})}


def _kept(result: Result, folder: Path) -> str | None:
    """Save the result and its report; return a note for the user if the model cannot be saved."""
    unsaved = None
    try:
        result.save(folder)
    except SavingError as error:
        unsaved = unwritten(error)
        result = replace(result, notes=(*result.notes, unsaved))
    result.report(folder.parent / REPORT)
    return unsaved


@front_door(Signature)
@plain_surroundings()
def plan(request: OptimizeRequest) -> Plan:
    """Return what `optimize` would do with the same arguments, and estimate how long it would take. Nothing is trained.

    A run directory is checked as `optimize` checks it, and left as it is.

    Args:
        request: the arguments that `fxsurgery.request.Arguments` declares, and single settings by name.

    Returns:
        The stages, the costs that can be reached, and the estimated time; `print` shows them as a page.

    Raises:
        SurgeryError: whatever `optimize` raises before it trains, e.g. if the budget cannot be reached.
    """
    watch = Stopwatch()
    began = watch.clock()
    ready = prepare(request, is_planned=True)
    found = space_of(ready)
    prepared = watch.clock()
    told = list(reach(ready, found, measured=True))
    check(ready, found)
    is_measured = ready.progress.shown or ready.latency is not None  # then optimize measures the latencies as well
    set_up_s = (watch.clock() if is_measured else prepared) - began
    stages, stage_seconds, rest_s, plan_notes = _foreseen(ready, found, watch)
    seconds = set_up_s + sum(stage_seconds) + rest_s
    if ready.request.spend is not None and ready.request.spend.seconds is not None:
        seconds = (
            ready.request.spend.seconds
            if ready.request.spend.epochs is None
            else min(seconds, ready.request.spend.seconds)
        )
    return Plan(
        ready.method.name,
        tuple(r for r in told if isinstance(r, CostRange)),
        stages,
        seconds,
        (
            *plan_notes,
            *parallel_note(ready),
            *ready.notes,
            *ready.program.notes,
            *left_alone(ready),
            *(() if found is None else found.notes()),
            *(r for r in told if isinstance(r, str)),
        ),
        stage_seconds,
    )


def _announce(ready: PreparedRun, found: Space | None) -> None:
    """Report the cost of the model, what can be reached and the budget, before anything is trained."""
    progress = ready.progress
    for line in reach(ready, found, measured=progress.shown):
        progress.note(str(line))
    for note in (*ready.program.notes, *unknown_macs_notes(ready.program, ready.budget)):
        progress.note(f"note: {note}")
    if ready.run.path is not None and (unsaved := unwritable(ready.program, ready.run.path)):
        progress.note(f"note: {unsaved}")
    if ready.request.trained:
        progress.note(f"the weights are assumed to be trained; pass {assigned('trained', value=False)} to train first")


def _session(ready: PreparedRun) -> tuple[Session, tuple[str, ...]]:
    """Return the session of the search, and notes on synthesized data and on a training mode that was measured."""
    trainer, task, notes = _trainer(ready), ready.task, list[str]()
    if task is None:
        task, note = made_task(ready, trainer)
        notes.append(note)
    trainer, chosen = _in_fastest_mode(trainer, ready, task)
    session = Session(
        task, trainer, ready.latency, spend=ready.request.spend, constraints=ready.constraints, workshop=ready.workshop,
        finetune=ready.tuning.finetune, objective=ready.tuning.objective,
    )  # fmt: skip
    return session, (*notes, *chosen)


def _trainer(ready: PreparedRun) -> Trainer:
    """Return the trainer of the request, in the plain mode where `auto` is still to be measured."""
    request = ready.request
    mode = plain_mode(request.memory_format, request.mixed_precision)
    return Trainer(request.seed, ready.progress, request.device, mode, request.accumulate, ready.run)


def _in_fastest_mode(trainer: Trainer, ready: PreparedRun, task: Task) -> tuple[Trainer, tuple[str, ...]]:
    asked = (ready.request.memory_format, ready.request.mixed_precision)
    return with_fastest_mode(trainer, ready.program, task, ready.settings, asked)


def _foreseen(
    ready: PreparedRun, space: Space | None, watch: Stopwatch
) -> tuple[tuple[Stage, ...], tuple[float, ...], float, tuple[str, ...]]:
    """Return the stages, the seconds of each and of everything beside them, and notes."""
    request, made, amount = ready.request, tuple[Stage, ...](), None
    if ready.task is not None:
        counted = timed = ready.task
    else:
        counted, timed, making, amount = foreseen_task(ready)
        made = (making,)
    trainer, chosen = _in_fastest_mode(replace(_trainer(ready), progress=Progress.quiet()), ready, timed)
    session = Session(
        counted, trainer, ready.latency, spend=request.spend, constraints=ready.constraints, finetune=request.finetune
    )
    found = ready.method.stages(ready.settings, session, trained=request.trained)
    stages = (*made, *found)
    stage_seconds, rest_s = estimate(ready, session, timed, stages, space, amount=amount, watch=watch)
    plan_notes = ready.method.plan_notes(ready.program, ready.settings, session, trained=request.trained)
    own = () if request.finetune is None else ("the estimated time does not include your finetune function",)
    return stages, stage_seconds, rest_s, (*chosen, *plan_notes, *own)


def _result(ready: PreparedRun, session: Session, outcome: SearchOutcome, notes: tuple[str, ...]) -> Result:
    task = session.task
    metrics = {"val": BeforeAfter(outcome.before.metric, outcome.after.metric)}
    if outcome.pruned is not None:
        metrics["val, not fine-tuned"] = BeforeAfter(outcome.before.metric, outcome.pruned.metric)
    figures = _figures(task, "val", outcome.before, outcome.after)
    if (test := task.test_data) is not None:
        before, after = (session.scored(program, "test score", test) for program in (outcome.trained, outcome.program))
        metrics["test"] = BeforeAfter(before.metric, after.metric)
        figures |= _figures(task, "test", before, after)
    if ready.task is None:
        notes = (f"data-free: fine-tune on your data; {task.metric_name}: {outcome.after.metric:.4f}", *notes)
    latency = latency_of(ready, outcome)
    return Result(
        program=outcome.program,
        original=outcome.trained,
        metric_name=_counted(task, outcome.after) or task.metric_name,
        metrics=metrics,
        figures=figures,
        notes=(
            *notes, *ready.notes, *ready.program.notes,
            *left_alone(ready), *outcome.notes,
            *latency_note(latency),
        ),
        history=tuple(session.trainer.progress.history),
        gates=outcome.gates,
        search=outcome.search,
        pareto=outcome.pareto,
        latency=latency,
        seed=ready.request.seed,
        asked={**ready.asked, "date": ready.run.recall("date", lambda: datetime.date.today().isoformat(), is_text)},
    )  # fmt: skip


def _figures(task: Task, split: str, before: Score, after: Score) -> dict[str, BeforeAfter]:
    """Return the values of a metric that returns several, except the selected one."""
    counted = _counted(task, after)
    shared = {name: value for name, value in before.figures.items() if name in after.figures and name != counted}
    return {f"{name} ({split})": BeforeAfter(value, after.figures[name]) for name, value in shared.items()}


def _counted(task: Task, score: Score) -> str:
    """Return the name of the selected value of a metric that returns several."""
    return task.select or next(iter(score.figures), "")


def _require_fast(ready: PreparedRun, outcome: SearchOutcome) -> None:
    """Refuse a result, of whichever method, that was not verified to be within the latency budget.

    Raises:
        BudgetError: it is not.
    """
    limit = None if ready.latency is None else ready.latency.limit
    if limit is None or ready.latency is None:
        return
    if outcome.latency is None or outcome.latency.high > limit.limit_ms:
        raise BudgetError(ready.latency.missed(outcome.latency or ready.latency.verify(outcome.program)))
