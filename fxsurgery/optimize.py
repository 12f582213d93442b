"""The front door: a model in, a smaller one out."""

import datetime
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxsurgery.analysis.cost import unknown_macs_notes
from fxsurgery.analysis.structure import structure
from fxsurgery.batch_layout import Statement
from fxsurgery.budget import Budget, Spend
from fxsurgery.datafree import foreseen_task, gradient_clip, made_task
from fxsurgery.errors import BudgetError, SavingError
from fxsurgery.execution import Executor
from fxsurgery.plan import CostRange, Plan, check, estimate, reach, space_of
from fxsurgery.request import OptimizeRequest, PreparedRun, prepare
from fxsurgery.result import BeforeAfter, Result
from fxsurgery.runs.layout import REPORT
from fxsurgery.runs.records import is_text
from fxsurgery.searchers.common.best_model import unwritable, unwritten
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.common.widths import Space
from fxsurgery.searchers.session import Outcome, Session, Stage, Trainer
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training import MixedPrecision, Score, Task
from fxsurgery.training.batches import count


@plain_surroundings()
def optimize(  # noqa: PLR0913 -- the front door takes what a user may want to say, each by name
    model: nn.Module,
    *,
    method: str | None = None,
    train_data: Any = None,  # noqa: ANN401
    val_data: Any = None,  # noqa: ANN401
    test_data: Any = None,  # noqa: ANN401
    budget: Budget | None = None,
    loss: Callable[..., Any] | None = None,
    metric: Any = None,  # noqa: ANN401
    trained: bool = True,
    config: Settings | None = None,
    spend: Spend | None = None,
    executor: Executor = "in-process",
    workers: int | None = None,
    example_inputs: Sequence[Any] | Tensor | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    batch_dims: Statement = None,
    leaf_modules: tuple[type[nn.Module], ...] = (),
    batch_size: int = 64,
    seed: int = 0,
    device: str | None = None,
    target: str = "local",
    mixed_precision: MixedPrecision | None = None,
    accumulate: int = 1,
    run_dir: str | Path | None = None,
    resume: bool = False,
    verbose: bool = True,
    **settings: Any,  # noqa: ANN401
) -> Result:
    """Make `model` smaller, or better for what it takes. The model passed in is left bit for bit as it was.

    Without any data, `optimize(model)` works on inputs that it makes of the model: of a shape inferred from the first
    layer, with the statistics that the model's batch norms remember. It learns from the original's own outputs, and
    the result says how well it agrees with them. Fine-tune such a result on your data.

    Args:
        model: any module that `fxsurgery.capture.capture` can take.
        method: `"dnal"` (learned gates), unless said; `"prune"` (magnitude, BN-gamma, Taylor or random importance);
            or `"ectonas"` (evolution: it grows and shrinks, and trains many networks).
        train_data: a `DataLoader`, a `Dataset`, tensors or arrays `(inputs, targets)`, or a dict of them; or a
            ready `fxsurgery.training.Task`, which then carries validation data, loss and metric too. Batches may be
            dicts, with a key `labels`, `label`, `targets`, `target` or `y`: the model is called by name with the rest.
        val_data: the same; everything is selected on it.
        test_data: the same; looked at once, for the result.
        budget: what the result may take; half the MACs unless said, but for `"ectonas"`, which needs none.
        loss: `loss(output, target)`, a scalar or several by name, `output` being just what the model gives;
            cross-entropy unless said, of the output or of its `logits`.
        metric: `metric(output, target)`, higher is better, or an object with `update` and `compute`; accuracy for the
            default loss.
        trained: whether the model's weights are trained. If not, they are trained first.
        config: the method's own settings, `Dnal(...)`, `Prune(...)` or `Ectonas(...)`; it says the method, too.
        spend: what `"ectonas"` may spend; 1000 epochs over all its networks unless said.
        executor: where `"ectonas"` trains: `"in-process"`, one network after the other; `"processes"`, several at once
            (a forked process each); or `"ray"`, on a Ray cluster. The result is the same.
        workers: how many at once; as many as there are cores, unless said.
        example_inputs: what to capture the model on, by position, or the one tensor that it takes; from the training
            data unless said.
        example_kwargs: the same by name.
        batch_dims: which dim of the inputs is the batch, as for `fxsurgery.capture.capture`: `batch_dims=1`, or by
            input, `{"text": None, "offsets": 0}`; inferred from data and model by default.
        leaf_modules: module classes that the capture shall not look into.
        batch_size: for data given as tensors or as a `Dataset`.
        seed: the same seed gives the same result on the same machine.
        device: where to train, `"cpu"` or `"cuda"`; the GPU where there is one, unless said.
        target: the device that a budget of `latency_ms` is measured on, for one sample, through ONNX Runtime: the
            original once, every other network in turns with the original. Such a result depends on the measurements,
            not on the seed alone; it holds the budget by the upper bound of its 95 % interval, or is refused.
        mixed_precision: `"bf16"` or `"fp16"`; what `accelerate launch` says unless said.
        accumulate: batches per optimiser step, whose gradients are added up.
        run_dir: where the run keeps its settings, journal, snapshots, best model, result and report; a killed run
            can go on from it.
        resume: go on with the run in `run_dir`, to the same end; begin it where there is none.
        verbose: show progress.
        settings: single settings of the method by name, in place of `config`: `greediness=0.5`.

    Returns:
        The new model with its costs, scores and log.

    Raises:
        CaptureError: the model cannot be taken as a graph; the message names file and line.
        BudgetError: the budget cannot be reached; the message says what can.
        StructureError: nothing of the model can be removed, and why.
        DataError: the data does not fit the model.
        TrainingError: training failed, e.g. the loss is not finite.
        DeviceError: there is no such device.
        RunError: the run directory cannot be written, holds another run, or another process is at work there.
    """
    asked = dict(locals())
    ready = prepare(OptimizeRequest(**asked))
    with ready.run:
        return _optimized(ready)


def _optimized(ready: PreparedRun) -> Result:
    found = space_of(ready)
    if done := ready.run.done:
        ready.progress.note(f"going on with {ready.run.path}: {done} steps of its journal are recalled")
    _announce(ready, found)
    check(ready, found)
    session, notes = _session(ready)
    outcome = ready.method.search(ready.program, ready.budget, ready.settings, session, trained=ready.ask.trained)
    _require_fast(ready, outcome)
    result = _result(ready, session, outcome, notes)
    unsaved = ready.run.finish(lambda folder: _kept(result, folder), ready.progress.note)
    return result if unsaved is None else replace(result, notes=(*result.notes, unsaved))


def _kept(result: Result, folder: Path) -> str | None:
    """Keep the result and its page; what to tell a user where the model cannot be written."""
    unsaved = None
    try:
        result.save(folder)
    except SavingError as error:
        unsaved = unwritten(error)
        result = replace(result, notes=(*result.notes, unsaved))
    result.report(folder.parent / REPORT)
    return unsaved


@plain_surroundings()
def plan(model: nn.Module, **asked: Any) -> Plan:  # noqa: ANN401
    """What `optimize` would do with the same arguments, and about how long that takes here. Nothing is trained.

    Args:
        model: the model.
        asked: the other arguments of `optimize`. A run directory is not touched.

    Raises:
        SurgeryError: as `optimize` does before it trains: e.g. the budget cannot be reached.
    """
    known = {f.name for f in fields(OptimizeRequest)} - {"settings"}
    settings = {name: value for name, value in asked.items() if name not in known}
    given = {name: value for name, value in asked.items() if name in known}
    ready = prepare(OptimizeRequest(model=model, settings=settings, **{**given, "run_dir": None, "resume": False}))
    found = space_of(ready)
    told = list(reach(ready, found, measured=True))
    check(ready, found)
    stages, seconds, foretold = _foreseen(ready)
    if ready.ask.spend is not None and ready.ask.spend.seconds is not None:
        seconds = ready.ask.spend.seconds if ready.ask.spend.epochs is None else min(seconds, ready.ask.spend.seconds)
    return Plan(
        ready.method.name,
        tuple(r for r in told if isinstance(r, CostRange)),
        stages,
        seconds,
        (*foretold, *ready.notes, *ready.program.notes, *_left_alone(ready), *(r for r in told if isinstance(r, str))),
    )


def _announce(ready: PreparedRun, found: Space | None) -> None:
    """Say what there is, what can be reached and what is wanted, before anything is trained."""
    progress = ready.progress
    for line in reach(ready, found, measured=progress.shown):
        progress.note(str(line))
    for note in (*ready.program.notes, *unknown_macs_notes(ready.program, ready.budget)):
        progress.note(f"note: {note}")
    if ready.run.path is not None and (unsaved := unwritable(ready.program, ready.run.path)):
        progress.note(f"note: {unsaved}")
    if ready.ask.trained:
        progress.note("taking the weights as trained; pass trained=False to train them first")


def _session(ready: PreparedRun) -> tuple[Session, tuple[str, ...]]:
    """What the search works with; and notes on the data where they had to be made."""
    ask = ready.ask
    trainer = Trainer(ask.seed, ready.progress, ask.device, ask.mixed_precision, ask.accumulate, ready.run)
    if ready.task is not None:
        return Session(ready.task, trainer, ready.latency, spend=ask.spend, workshop=ready.workshop), ()
    task, note = made_task(ready, trainer)
    clip = gradient_clip(ready)
    return Session(task, trainer, ready.latency, clip, spend=ask.spend, workshop=ready.workshop), (note,)


def _foreseen(ready: PreparedRun) -> tuple[tuple[Stage, ...], float, tuple[str, ...]]:
    """What will be trained, the seconds that it will take, and what else is known before."""
    ask, made = ready.ask, tuple[Stage, ...]()
    trainer = Trainer(ask.seed, device=ask.device, mixed_precision=ask.mixed_precision, accumulate=ask.accumulate)
    if ready.task is not None:
        counted = timed = ready.task
    else:
        counted, timed, making = foreseen_task(ready)
        made = (making,)
    session = Session(counted, trainer, ready.latency, spend=ask.spend)
    found = ready.method.stages(ready.settings, session, trained=ask.trained)
    stages = (*made, *found)
    looks = counted.val_batches or count(counted.val_data, "val_data")
    seconds = estimate(trainer, timed, ready.program, stages, looks=looks)
    return stages, seconds, ready.method.foretold(ready.program, ready.settings, session, trained=ask.trained)


def _result(ready: PreparedRun, session: Session, outcome: Outcome, notes: tuple[str, ...]) -> Result:
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
    latency = _latency(ready, outcome)
    return Result(
        program=outcome.program,
        original=outcome.trained,
        metric_name=_counted(task, outcome.after) or task.metric_name,
        metrics=metrics,
        figures=figures,
        notes=(
            *notes, *ready.notes, *ready.program.notes,
            *_left_alone(ready), *outcome.notes,
            *_latency_note(latency),
        ),
        history=tuple(session.trainer.progress.history),
        gates=outcome.gates,
        search=outcome.search,
        pareto=outcome.pareto,
        latency=latency,
        seed=ready.ask.seed,
        asked={**ready.asked, "date": ready.run.recall("date", lambda: datetime.date.today().isoformat(), is_text)},
    )  # fmt: skip


def _figures(task: Task, split: str, before: Score, after: Score) -> dict[str, BeforeAfter]:
    """The numbers of a metric that gives several, but for the one that counts."""
    counted = _counted(task, after)
    shared = {name: value for name, value in before.figures.items() if name in after.figures and name != counted}
    return {f"{name} ({split})": BeforeAfter(value, after.figures[name]) for name, value in shared.items()}


def _counted(task: Task, score: Score) -> str:
    """The number that counts, of a metric that gives several."""
    return task.select or next(iter(score.figures), "")


def _require_fast(ready: PreparedRun, outcome: Outcome) -> None:
    """Whatever the method: what was not verified to hold the budget of latency is not returned.

    Raises:
        BudgetError: it does not.
    """
    limit = None if ready.latency is None else ready.latency.limit
    if limit is None or ready.latency is None:
        return
    if outcome.latency is None or outcome.latency.high > limit.limit_ms:
        raise BudgetError(ready.latency.missed(outcome.latency or ready.latency.verify(outcome.program)))


def _latency(ready: PreparedRun, outcome: Outcome) -> dict[str, float]:
    """What a budget of latency was held by."""
    if ready.latency is None or outcome.latency is None or ready.latency.limit_ms is None:
        return {}
    whole, limit_ms, found = ready.latency.original_ms, ready.latency.limit_ms, outcome.latency
    interval = {"ms": found.value, "low_ms": found.low, "high_ms": found.high}
    return {"original_ms": whole, **interval, "limit_ms": limit_ms, "batch": ready.latency.batch}


def _latency_note(found: Mapping[str, float]) -> tuple[str, ...]:
    if not found:
        return ()
    whole = found["original_ms"]
    low, high = found["low_ms"] / whole, found["high_ms"] / whole
    times = f"latency {whole:.4g} ms before, {found['ms']:.4g} ms after, {found['limit_ms']:.4g} ms allowed"
    ratio = f"the ratio is {found['ms'] / whole:.3f} (95 % interval {low:.3f} to {high:.3f})"
    return (f"{times}; measured in turns, {ratio}, at batch size {found['batch']}",)


def _left_alone(ready: PreparedRun) -> tuple[str, ...]:
    """What of the model cannot shrink or be counted, and why.

    Of a method that tells of each move that it could not make, only what cannot be counted.
    """
    uncounted = unknown_macs_notes(ready.program, ready.budget)
    if ready.method.evolves:
        return uncounted
    facts = structure(ready.program)
    total = sum(w.macs for w in facts.work) or 1.0
    fixed = sum(w.macs for w in facts.work if not any(ids.any() for ids in w.dims))
    share = (f"{fixed / total:.1%} of the MACs cannot shrink",) if fixed / total > 0.001 else ()
    unknown = tuple(
        f"operation {op!r} (at {', '.join(nodes[:3])}) has no rule: what flows into it keeps its width"
        for op, nodes in facts.unknown.items()
    )
    return (*share, *unknown, *uncounted)
