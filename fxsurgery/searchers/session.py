"""The state that the stages of one search share, and the outcome of a search."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from fxsurgery.argument_names import named
from fxsurgery.budget import CostEstimate, Spend
from fxsurgery.errors import TrainingError
from fxsurgery.execution import Job, JobResult, JobRunner
from fxsurgery.program import Program
from fxsurgery.searchers.common.best_model import keep_best
from fxsurgery.searchers.common.cost_oracle import CostOracle
from fxsurgery.searchers.common.latency_model import LatencyLimit, LatencyModel
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.common.trials import SearchRecord
from fxsurgery.searchers.common.width_constraints import FREE, WidthConstraints
from fxsurgery.searchers.stage_training import StageTrainer
from fxsurgery.searchers.trainer import Trainer
from fxsurgery.searchers.user_finetune import user_fine_tuned
from fxsurgery.training import (
    Hooks,
    Objective,
    Recipe,
    Score,
    Task,
    evaluate,
    recalibrate,
    steps_for,
    task_objective,
)
from fxsurgery.training.batches import Loader
from fxsurgery.training.finetune import Finetune
from fxsurgery.training.rank_zero import from_rank_zero
from fxsurgery.training.snapshot import Checkpointer
from fxsurgery.training.snapshot_schema import is_score

REFERENCES = ("original", "trained")
"""Names of the scores with which all others are compared."""


@dataclass(frozen=True)
class Stage:
    """A stage that a search will go through."""

    name: str
    steps: int
    """Optimizer steps."""
    validations: int | None = None
    """Number of validation passes; `None` follows the training loop's default."""
    trainings: int = 1
    """Number of separate trainings that the steps are spread over."""
    recalibrates: bool = False
    """Whether batch norms are re-estimated before the stage."""


@dataclass(frozen=True, eq=False)
class SearchOutcome:
    """The outcome of a search."""

    program: Program
    """The smaller program, fine-tuned."""
    trained: Program
    """The program that was pruned: the one given, or that after the weights stage."""
    before: Score
    """Validation score of `trained`."""
    pruned: Score | None
    """Validation score right after pruning and re-estimating the batch norms; `None` if the method does not prune."""
    after: Score
    """Validation score of `program`."""
    notes: tuple[str, ...] = ()
    gates: tuple[float, ...] = ()
    """Value of each gate at the end of the architecture stage."""
    search: SearchRecord | None = None
    """The trials of a search that trains many networks."""
    pareto: tuple[ParetoMember, ...] = ()
    """The Pareto front of the search."""
    latency: CostEstimate | None = None
    """Verified latency of `program`; `None` if the budget does not limit it."""


@dataclass(frozen=True, eq=False)
class Session:
    """State that the stages of one search share."""

    task: Task
    trainer: Trainer = field(default_factory=Trainer)
    latency: LatencyModel | None = None
    """Latency model for budgets of latency."""
    spend: Spend | None = None
    """Spend of a search that runs until it is used up."""
    finetune: Finetune | None = None
    """The user's own function in place of the last fine-tune stage."""
    objective: Objective = task_objective
    """How a batch becomes a loss in fine-tuning."""
    constraints: WidthConstraints = FREE
    workshop: JobRunner = field(default_factory=JobRunner)
    """Runs independent trainings."""
    notes: list[str] = field(default_factory=list)
    rates: dict[str, float] = field(default_factory=dict)
    """Learning rates that were found, by kind of stage."""
    offered: list[tuple[Score, Program]] = field(default_factory=list)
    """Programs within the budget, in the order in which they were offered."""

    @property
    def seed(self) -> int:
        """Seed of all random numbers."""
        return self.trainer.seed

    @cached_property
    def epoch(self) -> float:
        """Optimizer steps per epoch; below 1 if a step takes more batches than an epoch has."""
        return steps_for(self.task, 1, min_steps=1, max_steps=None) / self.trainer.accumulate

    @property
    def costs(self) -> CostOracle:
        """Cost oracle: counted costs, and the latency if there is a device to measure it on."""
        return CostOracle() if self.latency is None else self.latency.costs

    @property
    def latency_limit(self) -> LatencyLimit | None:
        """Latency limit of the budget; `None` if it has none."""
        return None if self.latency is None else self.latency.limit

    @property
    def lost_workers(self) -> int:
        """Number of processes that died and whose trainings were run again."""
        return self.workshop.lost

    def steps(self, settings: Settings, epochs: float) -> int:
        """Return the number of optimizer steps of a number of epochs."""
        bounds = {"min_steps": settings.fewest_steps, "max_steps": settings.most_steps}
        return steps_for(self.task, epochs, accumulate=self.trainer.accumulate, **bounds)

    def score(self, program: Program, what: str) -> Score:
        """Return the validation score of a program, and report it as `what`."""
        score = self.scored(program, f"score of {what}")
        self._watch(score, what)
        self.trainer.progress.note(f"{what}: validation {self.task.metric_name} {score.metric:.4f}")
        return score

    def _watch(self, score: Score, what: str) -> None:
        """Refuse a reference score that is NaN; note a later metric or loss that is not finite."""
        name = self.task.metric_name
        if math.isnan(score.metric) and what in REFERENCES:
            if self.task.metric is None:
                raise TrainingError(
                    f"the loss is {score.loss} on {named('val_data')} for the {what} model; look for NaN in its "
                    f"weights or in {named('val_data')}"
                )
            raise TrainingError(
                f"the validation {name} of the {what} model is not a number (NaN), so nothing can be compared with it: "
                f"see what the metric gives on {named('val_data')} (its loss there is {score.loss:.4g})"
            )
        if not math.isfinite(score.metric):
            self.notes.append(f"the validation {name} of {what} is not finite: {score.metric}")
        elif not math.isfinite(score.loss):
            self.notes.append(f"the validation loss of {what} is not finite: {score.loss}")

    def scored(self, program: Program, name: str, data: Loader | None = None) -> Score:
        """Return the score of a program on `data`, the validation data by default; recalled in a resumed run."""
        trainer = self.trainer

        def compute() -> dict[str, Any]:
            score = evaluate(program.graph_module, self.task, data, device=trainer.device)
            if data is None:
                trainer.progress.callbacks.validation(name.removeprefix("score of "), self.task.metric_name, score)
            return asdict(score)

        found = trainer.run.recall(name, compute, is_score)
        return Score(**found)

    def fit(
        self,
        model: nn.Module,
        recipe: Recipe,
        stage: str,
        *,
        parameters: list[nn.Parameter] | None = None,
        hooks: Hooks | None = None,
    ) -> None:
        """Train `model` in place."""
        self.trainer.fit(model, self.task, recipe, stage, parameters=parameters, hooks=hooks)

    def run_jobs(
        self, jobs: Sequence[Job], deadline: float | None, on_end: Callable[[int, JobResult], None] | None = None
    ) -> list[JobResult]:
        """Run independent trainings, and return their results in order."""
        whole = [replace(job, recipe=self.trainer.own(job.recipe)) for job in jobs]

        def report(number: int, end: JobResult) -> None:
            if end.is_recalled:
                self.trainer.progress.callbacks.skip(end.records)
            else:
                self.trainer.progress.callbacks.job(jobs[number].name, self.task.metric_name, end.records, end.failure)
            if on_end is not None:
                on_end(number, end)

        return self.workshop.run(whole, self.task, self.trainer.run, deadline=deadline, on_end=report)

    def recalibrated(self, program: Program) -> Program:
        """Return the program with its batch norms re-estimated."""
        model, trainer = program.trainable_copy(), self.trainer

        def work(_: Checkpointer | None) -> list[Any]:
            recalibrate(model, self.task, seed=trainer.seed, device=trainer.device)
            return []

        trainer.run.stage("batch norms", model, work)
        return program.with_weights(model)

    def trained(
        self,
        program: Program,
        settings: Settings,
        stage: str,
        epochs: float,
        *,
        start: Score | None = None,
        reference: Score | None = None,
        is_last: bool = False,
    ) -> Program:
        """Return the program after a stage that trains its weights.

        Args:
            program: the network at the start of the stage, left as it is.
            settings: how it trains.
            stage: the name of the stage.
            epochs: passes over the training data; 0 returns the program as it is.
            start: the score of `program`, if it is known.
            reference: the score before the surgery; `None` for a network that is not trained yet.
            is_last: whether the user's own fine-tune function takes the place of the stage, if there is one.

        Raises:
            DivergedError: training diverges.
        """
        if is_last and self.finetune is not None:
            return user_fine_tuned(self.finetune, program, self.trainer, stage, self.task.metric_name)
        steps = self.steps(settings, epochs)
        if not steps:
            return program
        if start is None and settings.finds_rate:
            start = self.scored(program, f"score before {stage}")
        return self.stage_trainer.train(program, settings, stage, steps, start=start, reference=reference)

    def last_steps(self, settings: Settings, epochs: float) -> int:
        """Return the optimizer steps of the last fine-tune stage; 0 if the user's own function takes its place."""
        return 0 if self.finetune is not None else self.steps(settings, epochs)

    @property
    def stage_trainer(self) -> StageTrainer:
        """Trains weights at safe learning rates."""
        return StageTrainer(self.trainer, self.task, self.notes, self.rates, self.objective)

    def offer(self, program: Program, score: Score) -> None:
        """Offer a program within the budget as the result; the best one is kept in the run directory."""
        self.offered.append((score, program))
        if self.best[1] is program:
            self.keep(program)

    def keep(self, program: Program) -> None:
        """Save a program in the run directory as the best so far."""
        if (path := self.trainer.run.path) is not None:
            from_rank_zero(lambda: keep_best(program, path))

    @property
    def best(self) -> tuple[Score, Program]:
        """The best offered program on validation data: the later of equals, and never one with a NaN."""
        sign = 1.0 if self.task.higher_is_better else -1.0

        def worth(pair: tuple[Score, Program]) -> float:
            return -math.inf if math.isnan(pair[0].metric) else sign * pair[0].metric

        return max(reversed(self.offered), key=worth)

    def outcome(
        self,
        trained: Program,
        before: Score,
        pruned: Score | None,
        notes: tuple[str, ...],
        gates: tuple[float, ...] = (),
    ) -> SearchOutcome:
        """Return the outcome of the search with the best offered program on validation data."""
        after, program = self.best
        if math.isnan(after.metric):
            raise TrainingError(
                f"the validation {self.task.metric_name} is not a number (NaN) for any network; see what the metric "
                f"gives on {named('val_data')}"
            )
        if program is not self.offered[-1][1]:
            worse = f"further training made the validation {self.task.metric_name} worse"
            notes = (*notes, f"{worse} ({self.offered[-1][0].metric:.4f}); kept the best, {after.metric:.4f}")
        return SearchOutcome(program, trained, before, pruned, after, notes, gates)
