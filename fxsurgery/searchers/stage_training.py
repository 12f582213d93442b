"""Train the weights of a network for a stage, at a learning rate that is safe for it.

A rate that the user gives is kept as it is. Otherwise a range test finds one for the weights stage and one for the
fine-tuning (`fxsurgery.training.rate_range`), and a stage that diverges or collapses is trained again from its start at
a tenth of the rate. A stage has collapsed if its validation metric ends

    clearly below that of its start, by more than `FALL` of it; or
    where there is a reference, the metric before the surgery: with less than `RECOVERY` of the way back to it; or
    where there is none, an untrained network: no better than at its start.

The last two need a stage of at least `LONG_ENOUGH` steps.

What was measured and what failed is kept in the run directory, so that a resumed run repeats nothing.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fxsurgery.argument_names import keyword
from fxsurgery.errors import DivergedError
from fxsurgery.program import Program
from fxsurgery.runs.records import is_amount
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.trainer import Records, Trainer
from fxsurgery.training import Hooks, Objective, Recipe, Score, Task, task_objective
from fxsurgery.training.rate_range import RangeTest

RETRIES = 2
"""Repetitions of a stage that diverges; one that collapses is repeated once."""
SLOWDOWN = 0.1
"""Factor of the learning rate of a repetition."""
FALL, LOSS_RISE = 0.1, 0.5
"""Fraction of the metric at the start by which it may fall, or rise where it is a loss, which has no scale."""
RECOVERY = 0.1
"""Fraction of the way back to the reference that a stage must gain."""
LONG_ENOUGH = 50
"""Steps after which a stage should have gained something."""


@dataclass(frozen=True, eq=False)
class StageTrainer:
    """Trains the weights of programs, and remembers the learning rates that were found."""

    trainer: Trainer
    task: Task
    notes: list[str]
    """Notes of the search, to which this adds its own."""
    rates: dict[str, float]
    """Learning rates that were found, by kind of stage: "weights", "fine-tune"."""
    objective: Objective = task_objective
    """How a batch becomes a loss in fine-tuning."""

    def rate(self, program: Program, settings: Settings, kind: str, highest: float | None = None) -> float | None:
        """Return the learning rate of a kind of stage, found by a range test on first use; `None` if it is given.

        Args:
            program: the network at the start of the stage.
            settings: how it trains.
            kind: the kind of stage.
            highest: the upper bound; that of the settings by default.
        """
        if not settings.finds_rate:
            return None
        if kind not in self.rates:
            trainer = self.trainer
            test = RangeTest(
                program.trainable_copy, self.task, trainer.own(recipe_of(settings, 1, None)), settings.optimizer_at,
                highest or settings.highest_rate, trainer.seed, trainer.device,
            )  # fmt: skip
            self.rates[kind] = trainer.run.recall(f"learning rate of {kind}", lambda: test.run(kind), is_amount)
            self._tell(f"{kind}: a range test found the learning rate {self.rates[kind]:.3g}")
        return self.rates[kind]

    def train(
        self,
        program: Program,
        settings: Settings,
        stage: str,
        steps: int,
        *,
        start: Score | None = None,
        reference: Score | None = None,
    ) -> Program:
        """Return the program after a stage.

        Args:
            program: the network at the start of the stage, left as it is.
            settings: how it trains.
            stage: the name of the stage; the part before a comma is its kind.
            steps: optimizer steps.
            start: the score of `program`; it is needed where the learning rate is found.
            reference: the score before the surgery; `None` for a network that is not trained yet.

        Raises:
            DivergedError: training diverges at each rate that was tried.
        """
        kind = stage.partition(",")[0]
        rate = self.rate(program, settings, kind)
        if rate is None or start is None:
            model = program.trainable_copy()
            recipe = recipe_of(settings, steps, None)
            records = self.trainer.fit(model, self.task, recipe, stage, hooks=self._hooks(kind))
            self._note_early_stop(records, stage)
            return program.with_weights(model)
        goal, ended, failure = _Goal(start, reference, self.task), list[tuple[float, float, Program]](), None
        for attempt in range(RETRIES + 1):
            model, name = program.trainable_copy(), f"{stage}, retry {attempt}" if attempt else stage
            records, failure = self.trainer.attempt(
                model, self.task, recipe_of(settings, steps, rate), name, hooks=self._hooks(kind)
            )
            if failure is None:
                self._note_early_stop(records, name)
                metric = goal.final(records)
                ended.append((metric, rate, program.with_weights(model)))
                failure = goal.collapse(metric, steps)
                if failure is None or len(ended) > 1:
                    break
            if attempt < RETRIES:
                self._tell(
                    f"{name}: {failure.removeprefix(f'stage {name!r}, ')}; the stage is repeated at the learning rate "
                    f"{rate * SLOWDOWN:.3g}; pass {keyword('settings', 'learning_rate')} to set it"
                )
                rate *= SLOWDOWN
        if not ended:
            raise DivergedError(f"{failure}; pass {keyword('settings', 'learning_rate')} to train at a lower one")
        _, self.rates[kind], best = max(ended, key=lambda end: goal.worth(end[0]))
        return best

    def _hooks(self, kind: str) -> Hooks | None:
        return Hooks(objective=self.objective) if kind == "fine-tune" else None

    def _note_early_stop(self, records: Records, stage: str) -> None:
        last = records[-1]
        if last["step"] < last["steps"]:
            self.notes.append(f"{stage}: stopped early after step {last['step']} of {last['steps']}")

    def _tell(self, text: str) -> None:
        self.notes.append(text)
        self.trainer.progress.note(text)


def recipe_of(settings: Settings, steps: int, rate: float | None) -> Recipe:
    """Return the recipe of a stage that trains weights, at a learning rate or at the one of the settings."""
    return Recipe(
        steps=steps,
        optimizer=settings.optimizer_at(rate),
        schedule=settings.own_schedule,
        gradient_clip=settings.gradient_clip,
        early_stopping=settings.early_stopping,
    )


@dataclass(frozen=True)
class _Goal:
    """The score that a stage must not fall short of."""

    start: Score
    reference: Score | None
    task: Task

    def worth(self, metric: float) -> float:
        """Return a metric such that higher is better; NaN is the worst."""
        if math.isnan(metric):
            return -math.inf
        return metric if self.task.higher_is_better else -metric

    def final(self, records: Sequence[dict[str, Any]]) -> float:
        """Return the metric of the weights that a stage ended with: its last one, with early stopping the best one."""
        metrics: list[float] = [record["metric"] for record in records if record["metric"] is not None]
        return max(metrics, key=self.worth) if records[-1]["step"] < records[-1]["steps"] else metrics[-1]

    def collapse(self, metric: float, steps: int) -> str | None:
        """Return why a stage of some steps that ends with a metric has collapsed; `None` if it has not."""
        start, name = self.start.metric, self.task.metric_name
        fact = f"validation {name} went from {start:.4g} to {metric:.4g}"
        tolerance = FALL if self.task.higher_is_better else LOSS_RISE
        gained = self.worth(metric) - self.worth(start)
        if math.isnan(metric) or gained < -tolerance * abs(start):
            return None if math.isnan(start) else fact
        if steps < LONG_ENOUGH:
            return None
        if self.reference is None:
            return f"{fact}, no better than untrained" if gained <= 0 else None
        gap = self.worth(self.reference.metric) - self.worth(start)
        if gap > tolerance * abs(self.reference.metric) and gained < RECOVERY * gap:
            return f"{fact}, where it was {self.reference.metric:.4g} before the surgery"
        return None
