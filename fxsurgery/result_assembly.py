"""The result of a search: its scores, costs and notes put together."""

import datetime
from collections.abc import Mapping

from fxsurgery.analysis.cost import unknown_macs_notes
from fxsurgery.analysis.structure import structure
from fxsurgery.preparation import PreparedRun
from fxsurgery.result import Result
from fxsurgery.result_facts import BeforeAfter
from fxsurgery.runs.records import is_text
from fxsurgery.searchers.session import SearchOutcome, Session
from fxsurgery.training import Score, Task


def result_of(ready: PreparedRun, session: Session, outcome: SearchOutcome, notes: tuple[str, ...]) -> Result:
    """Return the result of a search.

    Args:
        ready: the run.
        session: state that the stages shared.
        outcome: network that the search found.
        notes: notes of the preparation.
    """
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
            *left_alone(ready), *outcome.notes,
            *_latency_note(latency),
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


def scalars_of(result: Result) -> dict[str, float]:
    """Return the scores and costs of a result by name, for callbacks."""
    before, after = result.cost
    scalars = {f"{split}/{result.metric_name}": pair.after for split, pair in result.metrics.items()}
    for name in ("params", "macs"):
        scalars |= {name: getattr(after, name), f"{name}_ratio": getattr(after, name) / max(getattr(before, name), 1)}
    return {**scalars, **({"latency_ms": result.latency["ms"]} if result.latency else {})}


def _latency(ready: PreparedRun, outcome: SearchOutcome) -> dict[str, float]:
    """Return the verified latency of the result; empty if the budget does not limit it."""
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


def left_alone(ready: PreparedRun) -> tuple[str, ...]:
    """Return notes on what cannot shrink or be counted, and why.

    An evolutionary method reports each move that it could not make, so only what cannot be counted is listed.
    """
    uncounted = unknown_macs_notes(ready.program, ready.budget)
    if ready.method.evolves:
        return uncounted
    facts = structure(ready.program)
    total = sum(w.macs for w in facts.work) or 1.0
    fixed = sum(w.macs for w in facts.work if not any(ids.any() for ids in w.dims))
    share = (f"{fixed / total:.1%} of the MACs cannot shrink",) if fixed / total > 0.001 else ()
    unknown = tuple(
        f"operation {op!r} (at {', '.join(nodes[:3])}) has no rule: its inputs keep their width"
        for op, nodes in facts.unknown.items()
    )
    return (*share, *unknown, *uncounted)
