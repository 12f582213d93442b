"""Estimate how long a run takes, from a few steps on copies of the model.

    seconds of a stage = trainings * start + steps * step + (validations + 1) * validation batches * forward

and, for the batch norms that are re-estimated after pruning, up to 100 forward batches more. What is timed runs once
before it is timed: a first call also imports modules, chooses kernels and fills caches, which takes seconds that no
later call takes.
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import count as count_up

import torch
from torch import nn

from fxsurgery.program import Program
from fxsurgery.searchers.common.latency_model import LatencyModel
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.common.widths import Space
from fxsurgery.searchers.session import Stage
from fxsurgery.searchers.trainer import Trainer
from fxsurgery.training import Hooks, Recipe, StepInfo, Task, evaluate, fit
from fxsurgery.training.batches import count
from fxsurgery.training.bn_inversion import synthetic_inputs
from fxsurgery.training.rate_range import STEPS as RANGE_STEPS
from fxsurgery.training.synthesis_amount import Amount

Clock = Callable[[], float]
"""Seconds from any origin."""
TakeSteps = Callable[[int, Callable[[StepInfo], None]], object]
"""Takes a number of optimizer steps and calls back after each."""

MEASURED_SECONDS = 1.0
"""Approximate duration of the steps that are averaged."""
MAX_STEPS = 50
"""Number of steps that are averaged, at most."""
LONG_STEP_SECONDS = 0.3
"""Duration from which on one step is averaged enough."""
FORWARD_BATCHES = 8
"""Number of validation batches that are timed."""
CALIBRATION_BATCHES = 100
"""Number of training batches that re-estimate the batch norms, at most."""
DEFAULT_VALIDATIONS = 5
"""Number of validations of a stage by default, at most; one an epoch."""
TESTED_KINDS = {"weights", "fine-tune", "search"}
"""Kinds of stages whose learning rate a range test finds."""
RETRIES = 2
"""Number of times that a network is typically cut for a budget of latency."""


@dataclass(frozen=True)
class StepTime:
    """Seconds that the parts of a training take."""

    step: float = 0.0
    """One optimizer step, with loading its batches."""
    start: float = 0.0
    """Everything before the first step: the loop, the optimizer and the data loader start."""

    def seconds(self, steps: float, trainings: int = 1) -> float:
        """Return the seconds that a number of steps take, spread over a number of trainings."""
        return trainings * self.start + steps * self.step


@dataclass(frozen=True, eq=False)
class Stopwatch:
    """Times calls after a warm-up."""

    clock: Clock = time.perf_counter

    def training(self, take: TakeSteps) -> StepTime:
        """Return the seconds of a step, between the ends of two steps, and of the start of a training.

        Args:
            take: takes the steps, on the same model each time.
        """
        take(1, _ignore)  # the warm-up: imports, kernels, caches
        found = self._timed(take, 2)
        if 0 < found.step < LONG_STEP_SECONDS:
            found = self._timed(take, 1 + min(MAX_STEPS, math.ceil(MEASURED_SECONDS / found.step)))
        return found

    def call(self, work: Callable[[], object]) -> float:
        """Return the seconds that the second of two calls takes."""
        work()
        return self.once(work)

    def once(self, work: Callable[[], object]) -> float:
        """Return the seconds that one call takes, as it is."""
        began = self.clock()
        work()
        return self.clock() - began

    def _timed(self, take: TakeSteps, steps: int) -> StepTime:
        ends = list[float]()
        whole = self.once(lambda: take(steps, lambda _: ends.append(self.clock())))
        step = (ends[-1] - ends[0]) / max(len(ends) - 1, 1)
        return StepTime(step, max(whole - steps * step, 0.0))


@dataclass(frozen=True)
class BatchCounts:
    """Numbers of batches of the data of a run."""

    train: int
    val: int
    test: int = 0


def training_time(watch: Stopwatch, trainer: Trainer, task: Task, program: Program, settings: Settings) -> StepTime:
    """Return the seconds of training a copy of a program, at a learning rate of 0; zero if nothing is trainable.

    Args:
        watch: times the steps.
        trainer: the training loop, with device and precision.
        task: the data, or batches like them.
        program: the captured model, which is not changed.
        settings: with the optimizer.
    """
    model = program.trainable_copy()
    if not any(p.requires_grad for p in model.parameters()):
        return StepTime()

    def take(steps: int, after_step: Callable[[StepInfo], None]) -> None:
        recipe = Recipe(steps=steps, optimizer=settings.optimizer_at(None), schedule=lambda _: 0.0, validations=0)
        hooks = Hooks(after_step=after_step)
        fit(model, task, trainer.own(recipe), seed=trainer.seed, device=trainer.device, hooks=hooks)

    return watch.training(take)


def synthesis_time(watch: Stopwatch, trainer: Trainer, program: Program, amount: Amount) -> StepTime:
    """Return the seconds of a step that matches a batch of synthetic inputs; zero if nothing is matched."""
    found = StepTime()

    def train(model: nn.Module, task: Task, recipe: Recipe, stage: str, *, hooks: Hooks) -> None:
        nonlocal found

        def take(steps: int, after_step: Callable[[StepInfo], None]) -> None:
            own, watched = trainer.own(replace(recipe, steps=steps)), replace(hooks, after_step=after_step)
            fit(model, task, own, seed=trainer.seed, stage=stage, device=trainer.device, hooks=watched)

        if not found.step:  # the batch that is held out takes no other steps
            found = watch.training(take)

    one = replace(amount, samples=min(amount.samples, amount.batch_size), validation=1)
    synthetic_inputs(program, one, seed=trainer.seed, train=train)
    return found


def forward_time(watch: Stopwatch, trainer: Trainer, task: Task, program: Program) -> float:
    """Return the seconds of loading and scoring one validation batch."""
    model, batches = program.trainable_copy(), min(FORWARD_BATCHES, count(task.val_data, "val_data"))
    few = replace(task, val_batches=batches)
    return watch.call(lambda: evaluate(model, few, device=trainer.device)) / batches


def latency_time(watch: Stopwatch, model: LatencyModel, space: Space | None, networks: int) -> float:
    """Return the seconds that a search measures latencies; 0 if neither budget nor search depends on them.

    With a space of widths, the search bisects over their blocks and verifies what it cuts. Without one it measures
    each network once.

    Args:
        watch: times the measurements.
        model: measures against the original, which it has measured before.
        space: the widths that the search chooses among.
        networks: number of networks that a search without such a space measures.
    """
    program = model.original if space is None else space.smallest_program()
    versions = count_up(1)

    def measure(*, thorough: bool) -> None:
        # Other weights each time: a program that was exported before is not exported again.
        model.timer.ratio(_scaled(program, 1.0 + next(versions) / 1024), thorough=thorough)

    quick_s = watch.call(lambda: measure(thorough=False))
    if space is None:
        return networks * quick_s
    thorough_s = watch.once(lambda: measure(thorough=True))
    blocks = sum(len(choice.counts) - 1 for choice in space.choices)
    return RETRIES * (math.ceil(math.log2(blocks + 1)) * quick_s + thorough_s) + thorough_s


def stage_time(stage: Stage, training: StepTime, forward: float, counts: BatchCounts, steps_per_epoch: float) -> float:
    """Return the seconds of one stage: its steps, its validations, and the score after it.

    Args:
        stage: what is trained.
        training: seconds of a step and of a start.
        forward: seconds of a batch that is scored.
        counts: numbers of batches of the data.
        steps_per_epoch: number of optimizer steps that go once through the training data.
    """
    validations = stage.validations
    if validations is None:
        validations = min(DEFAULT_VALIDATIONS, int(stage.steps / steps_per_epoch))
    batches = counts.val * (validations + 1)
    if stage.recalibrates:
        batches += min(CALIBRATION_BATCHES, counts.train)
    return training.seconds(stage.steps, stage.trainings) + batches * forward


def score_time(forward: float, counts: BatchCounts) -> float:
    """Return the seconds of scoring the original on the validation data, and both networks on the test data."""
    return forward * (counts.val + 2 * counts.test)


def range_test_time(stages: Sequence[Stage], training: StepTime, settings: Settings) -> float:
    """Return the seconds of the range tests for learning rates: one sweep for each kind of stage.

    Args:
        stages: what is trained; the part of a name before a comma is the kind of stage.
        training: seconds of a step and of a start.
        settings: whether a range test finds the rates.
    """
    kinds = {stage.name.partition(",")[0] for stage in stages} & TESTED_KINDS
    return len(kinds) * training.seconds(RANGE_STEPS) if settings.finds_rate else 0.0


def _scaled(program: Program, factor: float) -> Program:
    model = program.trainable_copy()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.is_floating_point():
                parameter.mul_(factor)
    return program.with_weights(model)


def _ignore(_: StepInfo) -> None:
    pass
