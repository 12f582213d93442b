"""The plan of an optimization: reachable costs, stages and estimated time, known before anything trains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from typing_extensions import override

from fxsurgery.analysis.cost import cost
from fxsurgery.argument_names import assigned
from fxsurgery.deploy import Timer, resolve_target
from fxsurgery.deploy.timing import GLANCE
from fxsurgery.display import bar, card, listing, table
from fxsurgery.errors import DeviceError, ExportError
from fxsurgery.preparation import PreparedRun
from fxsurgery.printable import lines, printable
from fxsurgery.program import Program
from fxsurgery.searchers.common.latency_model import LatencyModel, ms_texts
from fxsurgery.searchers.common.reachable import LatencyRange, require_reachable
from fxsurgery.searchers.common.widths import Space
from fxsurgery.searchers.session import Session, Stage
from fxsurgery.time_estimate import (
    CALIBRATION_BATCHES,
    BatchCounts,
    Stopwatch,
    forward_time,
    latency_time,
    range_test_time,
    score_time,
    stage_time,
    synthesis_time,
    training_time,
)
from fxsurgery.training import Amount, Task
from fxsurgery.training.batches import count, has_length
from fxsurgery.training.progress_line import clock


@dataclass(frozen=True)
class CostRange:
    """One cost of the model: its present value and the least that surgery can reach."""

    name: str
    original: float
    least: float | None
    """The least value; `None` for a method that also grows the model."""
    target: float | None
    """Limit of the budget; `None` if it does not limit this cost."""
    interval: tuple[float, float] | None = None
    """95 % interval of the least value, if it was measured repeatedly."""

    def figures(self) -> tuple[str, str, str]:
        """Return `original`, `least` and `target` as text, empty where there is none."""
        values = [value for value in (self.original, self.least, self.target) if value is not None]
        texts = ms_texts(*values) if self.name == "latency_ms" else [f"{value:,.0f}" for value in values]
        known = dict(zip(values, texts, strict=True))
        original, least, target = (
            "" if value is None else known[value] for value in (self.original, self.least, self.target)
        )
        return original, least, target

    @override
    def __str__(self) -> str:
        original, least, target = self.figures()
        parts = [
            f"{original} now",
            *([f"{least} at the least{self._interval_text()}"] if least else []),
            *([f"budget {target}"] if target else []),
        ]
        return printable(f"{self.name}: {', '.join(parts)}")

    def _interval_text(self) -> str:
        if self.interval is None or self.interval[0] == self.interval[1]:
            return ""
        return " (95 % interval {} to {})".format(*ms_texts(*self.interval))


@dataclass(frozen=True)
class Plan:
    """The stages, reachable costs and estimated time of `optimize`. `print` shows a page, a notebook shows tables.

    Example:
        >>> Plan("prune", (), (Stage("fine-tune", 200),), 12.0)
        <Plan for prune: 1 stage, 200 steps, about 0:12>
    """

    method: str
    reach: tuple[CostRange, ...]
    stages: tuple[Stage, ...]
    seconds: float
    """Estimated duration, from a few steps on a copy of the model."""
    notes: tuple[str, ...] = ()
    stage_seconds: tuple[float, ...] = ()
    """Estimated for each stage; set-up, scores and latency measurements are the rest of `seconds`."""

    @override
    def __repr__(self) -> str:
        steps = sum(stage.steps for stage in self.stages)
        stages = f"{len(self.stages)} stage{'' if len(self.stages) == 1 else 's'}"
        return printable(f"<Plan for {self.method}: {stages}, {steps:,} steps, about {clock(self.seconds)}>")

    def _repr_html_(self) -> str:
        costs = [(one.name, *one.figures()) for one in self.reach]
        longest = max(self.stage_seconds, default=0.0) or 1.0
        seconds = self.stage_seconds or [0.0] * len(self.stages)
        stages = [
            (stage.name, f"{stage.steps:,}", bar(s / longest, f"about {clock(s)}"))
            for stage, s in zip(self.stages, seconds, strict=True)
        ]
        return card(
            f"Plan for {self.method}: about {clock(self.seconds)} on this machine",
            table(("", "now", "least", "budget"), costs),
            table(("stage", "steps", "time"), stages),
            listing("notes", self.notes),
        )

    @override
    def __str__(self) -> str:
        page = [f"method: {self.method}", *map(str, self.reach)]
        times = [f", about {clock(seconds)}" for seconds in self.stage_seconds] or [""] * len(self.stages)
        page += [f"stage {s.name}: {s.steps:,} steps{t}" for s, t in zip(self.stages, times, strict=True)]
        page.append(f"estimated time: {clock(self.seconds)} on this machine")
        return lines([*page, *(f"note: {note}" for note in self.notes)])


def space_of(ready: PreparedRun) -> Space | None:
    """Return the widths that the method chooses among; `None` for a method that also grows the model."""
    return None if ready.method.space is None else ready.method.space(ready.program, ready.settings, ready.constraints)


def reach(ready: PreparedRun, found: Space | None, *, measured: bool) -> Iterator[CostRange | str]:
    """Yield the reachable range of each cost; a note if the latency cannot be measured.

    Args:
        ready: the checked request.
        found: the widths that the method chooses among.
        measured: whether to measure latencies if the budget does not limit them.
    """
    whole, least = cost(ready.program), None if found is None else found.smallest()
    wanted = dict(ready.budget.limits(whole)) if ready.budget is not None else {}
    for name in ("params", "macs"):
        yield CostRange(name, getattr(whole, name), None if least is None else getattr(least, name), wanted.get(name))
    if ready.latency is not None and ready.budget is not None:
        yield from _latencies(ready.latency, ready.program, found)
    elif measured:
        try:
            timer = Timer(resolve_target(ready.request.target), ready.program, ready.request.seed, GLANCE, GLANCE)
            yield CostRange("latency_ms", *_glanced(timer, found), None)
        except (ExportError, DeviceError) as error:
            yield f"latency: not measured, {error}"


def _latencies(latency: LatencyModel, program: Program, found: Space | None) -> Iterator[CostRange | str]:
    """Yield the range of the latency; a note if the budget is so close to its minimum that a run may miss it."""
    limit_ms = latency.limit_ms
    if found is None:
        yield CostRange("latency_ms", latency.measure(program).value, None, limit_ms)
        return
    measured = LatencyRange.of(found, latency.measure)
    lowest = measured.lowest
    yield CostRange("latency_ms", measured.unchanged.value, lowest.value, limit_ms, (lowest.low, lowest.high))
    if limit_ms is not None and measured.is_close_to(limit_ms):
        limit, low, high = ms_texts(limit_ms, lowest.low, lowest.high)
        yield (
            f"latency: the budget of {limit} ms is within the 95 % interval of the minimum, {low} to {high} ms, so the "
            f"run may fail to meet it; a budget above {high} ms can be met"
        )


def _glanced(timer: Timer, found: Space | None) -> tuple[float, float | None]:
    """Return the latency of the model and the lowest one, in milliseconds, from a short measurement."""
    original, _ = timer.original_latency
    return original, None if found is None else original * min(
        1.0, timer.ratio(found.smallest_program(), thorough=False)[0]
    )


def parallel_note(ready: PreparedRun) -> tuple[str, ...]:
    """Return a note on the estimate if several networks train at once, which it does not count on."""
    if ready.request.executor == "in-process":
        return ()
    executor = assigned("executor", ready.request.executor)
    return (f"the estimated time is that of one network at a time; {executor} trains several at once",)


def check(ready: PreparedRun, found: Space | None) -> None:
    """Check that the budget can be reached.

    Raises:
        BudgetError: the budget is below the minimum; the message gives that minimum.
        StructureError: a ratio changes no width.
    """
    if found is None:
        return
    found.require_targets()
    if ready.budget is not None:
        require_reachable(found, ready.budget, None if ready.latency is None else ready.latency.limit)


def estimate(
    ready: PreparedRun,
    session: Session,
    timed: Task,
    stages: Sequence[Stage],
    space: Space | None,
    *,
    amount: Amount | None = None,
    watch: Stopwatch | None = None,
) -> tuple[tuple[float, ...], float]:
    """Time a few steps on copies of the program and return the seconds of each stage, and of everything beside them.

    Args:
        ready: the checked request.
        session: the training loop and the data, or stand-ins of the same number of batches.
        timed: the data that steps are timed on.
        stages: what the search trains.
        space: the widths that the search chooses among; `None` for a search without such a space.
        amount: the synthetic inputs that the first stage makes; `None` if there are data.
        watch: times the steps.
    """
    watch, trainer, program, task = watch or Stopwatch(), session.trainer, ready.program, session.task
    step = training_time(watch, trainer, timed, program, ready.settings)
    times = [step] * len(stages)
    if amount is not None:
        times[0] = synthesis_time(watch, trainer, program, amount)
    forward = forward_time(watch, trainer, timed, program)
    counts = BatchCounts(
        train=len(task.train_data) if has_length(task.train_data) else CALIBRATION_BATCHES,
        val=task.val_batches or count(task.val_data, "val_data"),
        test=0 if task.test_data is None else count(task.test_data, "test_data"),
    )
    seconds = [stage_time(s, t, forward, counts, session.epoch) for s, t in zip(stages, times, strict=True)]
    rest = score_time(forward, counts) + range_test_time(stages, step, ready.settings)
    if ready.latency is not None:
        rest += latency_time(watch, ready.latency, space, sum(stage.trainings for stage in stages) // 2)
    return tuple(seconds), rest
