"""The learning-rate range test (Smith 2017): raise the rate on a copy of a model until training becomes unstable.

The rate rises geometrically over `STEPS` optimizer steps on training batches, up to `MARGIN` times the rate that is
wanted. A step is unstable where the median of the last three losses, which a single hard batch does not move, exceeds

    low + max(RISE * |low|, NOISE * spread),      low = the lowest such median so far,

with `spread` the standard deviation of the first losses, at rates that change nothing yet: a trained model has losses
near 0, and one batch's may be several times another's. If no step is unstable, the wanted rate is taken. Otherwise
1 / `MARGIN` of the rate of the first unstable step is tried for as many steps, on another copy, and divided by `MARGIN`
again while these are unstable: close to the limit, training diverges slowly.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median, pstdev

from torch import nn

from fxsurgery.errors import DivergedError
from fxsurgery.training.batch_stream import Stream
from fxsurgery.training.device import Device
from fxsurgery.training.distributed import BatchSharding
from fxsurgery.training.recipe import OptimizerFactory, Recipe
from fxsurgery.training.schedules import Schedule, constant
from fxsurgery.training.set_up import set_up
from fxsurgery.training.step import Hooks, Stepper
from fxsurgery.training.task import Task
from fxsurgery.turns import TURNS

STEPS = 32
CHECKS = 4
"""Trials at most of a rate that was found."""
DECADES = 4.0
"""Powers of ten between the first and the last rate of the test."""
MARGIN = 4.0
"""Ratio of the first unstable rate to the learning rate, and of one that is tried to the next."""
QUIET, WINDOW = 8, 3
"""Steps that measure the spread of the losses, and losses of a median."""
RISE, NOISE = 2.0, 6.0
"""Rise of the loss that is no instability: relative to its lowest level, and in standard deviations."""


@dataclass(frozen=True, eq=False)
class RangeTest:
    """Trains a copy of a model at rates that rise."""

    copy: Callable[[], nn.Module]
    """Makes a copy of the model."""
    task: Task
    recipe: Recipe
    """The recipe of the training; its optimizer and schedule are not used."""
    optimizer_at: Callable[[float], OptimizerFactory]
    """Makes the optimizer of the training at a learning rate."""
    wanted: float
    """The highest learning rate that is wanted."""
    seed: int = 0
    device: Device = None

    def run(self, stage: str) -> float:
        """Return the rate to train at, `wanted` at most; random states are afterwards as they were.

        Args:
            stage: what messages call the training.

        Raises:
            DataError: there is no batch, or one does not fit the model or the loss.
            DivergedError: the loss is not finite before anything is trained, or because of the data.
            TrainingError: the loss is not a scalar, or does not depend on what trains.
        """
        sweep = self._losses(stage, MARGIN * self.wanted, _rising())
        unstable = first_unstable(sweep)
        if unstable is None:
            return self.wanted
        rate = self._rate(unstable) / MARGIN
        for _ in range(CHECKS):
            if first_unstable([*sweep[:QUIET], *self._losses(stage, rate, constant())]) is None:
                break
            rate /= MARGIN
        return min(rate, self.wanted)

    def _losses(self, stage: str, highest: float, schedule: Schedule) -> list[float]:
        """Return the losses of the steps on a copy; infinity is the last one if training diverges."""
        losses = list[float]()
        try:
            self._train(stage, highest, schedule, losses)
        except DivergedError as error:
            if not error.retriable:
                raise
            losses.append(math.inf)
        return losses

    def _train(self, stage: str, highest: float, schedule: Schedule, losses: list[float]) -> None:
        """Take the steps, and add their losses to `losses`."""
        model = self.copy()
        recipe = replace(self.recipe, steps=STEPS, optimizer=self.optimizer_at(highest), schedule=schedule)
        with set_up(model, recipe, self.seed, None, self.device) as (accelerator, there, chosen):
            sharding = BatchSharding()
            stepper = Stepper(
                model, self.task, recipe, stage, Hooks(), accelerator, recipe.optimizer_of(chosen), there, sharding
            )
            data, count = self.task.train_data, self.task.counter(self.task.train_data)
            with Stream(data, self.seed, there, sharding, count) as stream:
                for number in range(STEPS):
                    TURNS.give_way()
                    portions = (stream.draw() for _ in range(stepper.batches))
                    losses.append(stepper.step(number, portions).loss)

    def _rate(self, step: int) -> float:
        """Return the rate of a step of the test."""
        return MARGIN * self.wanted * _rising()((step + 0.5) / STEPS)


def first_unstable(losses: Sequence[float]) -> int | None:
    """Return the number of the first step whose loss shows an unstable training, from 0; `None` if there is none.

    Example:
        >>> first_unstable([1.0, 0.9, 0.8, 0.7] * 8)
        >>> first_unstable([1.0, 0.9, 0.8, 0.7] * 5 + [3.0, 9.0, 27.0])
        21
    """
    spread = pstdev(losses[:QUIET]) if len(losses) > 1 and all(map(math.isfinite, losses[:QUIET])) else 0.0
    low = math.inf
    for step, loss in enumerate(losses):
        if not math.isfinite(loss):
            return step
        level = median(losses[max(0, step - WINDOW + 1) : step + 1])
        low = min(low, level)
        if step >= QUIET and level > low + max(RISE * abs(low), NOISE * spread):
            return step - 1
    return None


def _rising() -> Schedule:
    """Return the factors of the test: geometric from 10^-DECADES to 1."""
    return lambda progress: 10.0 ** (DECADES * (progress - 1))
