"""What `optimize` will do and how long it will take, told before anything trains."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader
from typing_extensions import override

from fxsurgery.analysis.cost import cost
from fxsurgery.deploy import Timer, resolve_target
from fxsurgery.deploy.timing import GLANCE
from fxsurgery.errors import DeviceError, ExportError
from fxsurgery.preparation import PreparedRun
from fxsurgery.printable import lines, printable
from fxsurgery.program import Program
from fxsurgery.searchers.common.latency_model import LatencyModel
from fxsurgery.searchers.common.reachable import require_reachable
from fxsurgery.searchers.common.widths import Space
from fxsurgery.searchers.session import Stage, Trainer
from fxsurgery.seeding import seeded
from fxsurgery.training import Recipe, Task, evaluate, fit, sgd
from fxsurgery.training.batches import Loader
from fxsurgery.training.progress import clock

LONG_STEP_SECONDS = 2.0
"""A first step that takes this long is measured well enough."""


@dataclass(frozen=True)
class CostRange:
    """One figure of the model, as it is and at the least that surgery can reach."""

    name: str
    original: float
    least: float | None
    """`None` where a method has none: it grows as well."""
    target: float | None
    """What the budget allows; `None` where it says nothing."""

    @override
    def __str__(self) -> str:
        form = "{:,.0f}" if self.name != "latency_ms" else "{:.3g}"
        parts = [f"{form.format(self.original)} now"]
        if self.least is not None:
            parts.append(f"{form.format(self.least)} at the least")
        if self.target is not None:
            parts.append(f"budget {form.format(self.target)}")
        return printable(f"{self.name}: {', '.join(parts)}")


@dataclass(frozen=True)
class Plan:
    """What will be done. `str(plan)` is the page to read."""

    method: str
    reach: tuple[CostRange, ...]
    stages: tuple[Stage, ...]
    seconds: float
    """Estimated for all of it, from some steps that were taken on a copy."""
    notes: tuple[str, ...] = ()

    @override
    def __str__(self) -> str:
        page = [f"method: {self.method}", *map(str, self.reach)]
        page += [f"stage {s.name}: {s.steps:,} steps" for s in self.stages]
        page.append(f"estimated time: {clock(self.seconds)} on this machine")
        return lines([*page, *(f"note: {note}" for note in self.notes)])


def space_of(ready: PreparedRun) -> Space | None:
    """The widths that the method chooses among; `None` where it has no such bounds."""
    return None if ready.method.space is None else ready.method.space(ready.program, ready.settings, ready.constraints)


def reach(ready: PreparedRun, found: Space | None, *, measured: bool) -> Iterator[CostRange | str]:
    """What can be reached, figure by figure; a text where a latency cannot be measured.

    Args:
        ready: what was asked for.
        found: the widths that there are.
        measured: whether to measure the latencies too where the budget does not limit them.
    """
    whole, least = cost(ready.program), None if found is None else found.smallest()
    wanted = dict(ready.budget.limits(whole)) if ready.budget is not None else {}
    for name in ("params", "macs"):
        yield CostRange(name, getattr(whole, name), None if least is None else getattr(least, name), wanted.get(name))
    if ready.latency is not None and ready.budget is not None:
        yield CostRange("latency_ms", *_latencies(ready.latency, ready, found), ready.latency.limit_ms)
    elif measured:
        try:
            timer = Timer(resolve_target(ready.request.target), ready.program, ready.request.seed, GLANCE, GLANCE)
            yield CostRange("latency_ms", *_glanced(timer, found), None)
        except (ExportError, DeviceError) as error:
            yield f"latency: not measured, {error}"


def _latencies(latency: LatencyModel, ready: PreparedRun, found: Space | None) -> tuple[float, float | None]:
    """Of the model as it is and at its least, in milliseconds."""
    return latency.measure(ready.program).value, None if found is None else latency.measure(
        found.smallest_program()
    ).value


def _glanced(timer: Timer, found: Space | None) -> tuple[float, float | None]:
    """The same by this process alone, which may be the only one that shows it."""
    whole, _ = timer.original_latency
    return whole, None if found is None else whole * timer.ratio(found.smallest_program(), thorough=False)[0]


def check(ready: PreparedRun, found: Space | None) -> None:
    """Refuse what cannot be reached.

    Raises:
        BudgetError: the budget is below the minimum; the message gives that minimum.
        StructureError: a ratio changes no width.
    """
    if found is None:
        return
    found.require_targets()
    if ready.budget is not None:
        require_reachable(found, ready.budget, None if ready.latency is None else ready.latency.limit)


def estimate(trainer: Trainer, task: Task, program: Program, stages: Sequence[Stage], *, val_batches: int) -> float:
    """Seconds that the stages will take, by taking a few steps on a copy of the program.

    Args:
        trainer: how it trains.
        task: batches like those that it trains on.
        program: the model.
        stages: what is trained.
        val_batches: batches that one validation pass scores.
    """
    model = program.trainable_copy()
    if not any(p.requires_grad for p in model.parameters()):
        return 0.0
    step_s = _timed(lambda: _steps(trainer, task, model, 1))
    if step_s < LONG_STEP_SECONDS:
        step_s = _timed(lambda: _steps(trainer, task, model, 3)) / 3
    with seeded(trainer.seed, torch.device("cpu")):
        first = next(iter(task.val_data))
    one: Loader = DataLoader([first], batch_size=None)  # type: ignore[arg-type]
    look_s = val_batches * _timed(lambda: evaluate(model, task, one, device=trainer.device))
    many = sum(min(5, max(1, s.steps // 100)) if s.validations is None else s.validations for s in stages) + 3
    return step_s * sum(stage.steps for stage in stages) + look_s * many


def _steps(trainer: Trainer, task: Task, model: nn.Module, steps: int) -> None:
    recipe = trainer.own(Recipe(steps=steps, optimizer=sgd(0.0), validations=0))
    fit(model, task, recipe, seed=trainer.seed, device=trainer.device)


def _timed(work: Callable[[], object]) -> float:
    began = time.monotonic()
    work()
    return time.monotonic() - began
