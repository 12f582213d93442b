"""Train the networks of a search, and keep those that may still win, the best one and the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from fxsurgery.budget import Metric
from fxsurgery.execution import Job, JobResult
from fxsurgery.program import Program
from fxsurgery.searchers.common.moves import OPERATIONS
from fxsurgery.searchers.common.pareto import Front
from fxsurgery.searchers.common.spend_tracker import SpendTracker
from fxsurgery.searchers.common.trials import Status, Trial
from fxsurgery.searchers.ectonas.brackets import drawn
from fxsurgery.searchers.ectonas.fitness import Figures, Fitness, Worth
from fxsurgery.searchers.ectonas.population import Individual, Population
from fxsurgery.searchers.ectonas.settings import Ectonas
from fxsurgery.searchers.session import Session
from fxsurgery.searchers.stage_training import RETRIES, SLOWDOWN, recipe_of
from fxsurgery.seeding import mix
from fxsurgery.training import Recipe, constant
from fxsurgery.training.progress import TrainingProgress


@dataclass(eq=False)
class TrainedState:
    """A network as it was after one training."""

    individual: Individual
    trial: Trial
    worth: Worth
    """Its rank key by the metric alone."""
    figures: Figures
    metric: float
    """The validation metric of these weights."""
    records: int
    """Length of its training curve at this time."""
    base: Program
    """The program that trained."""
    end: JobResult | None
    """The result of the training; `None` if nothing trained and `base` is the network itself."""

    @cached_property
    def program(self) -> Program:
        """The network; its weights are loaded on first use."""
        if self.end is not None:
            self.base, self.end = self.end.trained(self.base), None
        return self.base

    def along(self, axis: Metric) -> float | None:
        """Return its cost in one metric; `None` if that was not measured."""
        return self.trial.cost(axis)

    def records_of(self, ancestor: Individual) -> int:
        """Return how many records of an ancestor's training curve, or its own, belong to this network."""
        return self.records if ancestor is self.individual else len(ancestor.records)

    def forget(self) -> None:
        """Discard weights that were not loaded."""
        if self.end is not None:
            self.end.forget()


@dataclass(eq=False)
class SearchState:
    """Trains networks and keeps those that matter for the result."""

    config: Ectonas
    session: Session
    population: Population
    fitness: Fitness
    front: Front[TrainedState]
    tracker: SpendTracker
    latest: dict[Individual, TrainedState] = field(default_factory=dict)
    """The latest training of each network that may still win."""
    champion: TrainedState | None = None
    """The network with the best score of all that ever trained."""
    trainings: int = 0
    """Number of rounds of trainings so far."""
    shown: int = 0
    """Steps that the progress line has counted."""
    rate: float | None = None
    """Learning rate that a range test found; `None` if the settings give one, or an optimizer."""
    repeated: int = 0
    """Trainings that diverged and were repeated at a lower learning rate."""

    def length(self) -> tuple[int, str]:
        """Return the length of the search in epochs, or else in seconds, and the metric: for the progress line."""
        spend = self.tracker.spend
        return math.ceil(spend.epochs or spend.seconds or 1), self.session.task.metric_name

    def match_steps(self, individual: Individual) -> int:
        """Return the number of steps of its next match, including the recovery before its first one."""
        steps = self.session.steps(self.config, self.config.match_epochs)
        return steps if individual.own_steps else steps + self._recovery(individual.operation)

    def match_epochs(self, group: Sequence[Individual]) -> float:
        """Return the number of epochs of the next match of a group."""
        return sum(map(self.match_steps, group)) / self.tracker.epoch

    def generation_epochs(self, children: Mapping[str, int]) -> float:
        """Return the number of epochs of a generation, given the number of children by operation."""
        config, rng = self.config, np.random.default_rng(0)
        entries = sum(self._recovery(operation) * count for operation, count in children.items())
        match = self.session.steps(config, config.match_epochs)
        pools, winners = list(children.values()), 1 if len(children) >= config.parents else config.parents
        for goal in (winners, config.parents):
            for left in reversed(range(config.rounds)):
                entries += match * sum(pools)
                pools = [len(drawn(range(size), left=left, winners=goal, rng=rng)) for size in pools]
            pools = [sum(pools)]
        return entries / self.tracker.epoch

    def _recovery(self, operation: str) -> int:
        """Return the number of steps before the first match."""
        known = OPERATIONS.get(operation)
        return 0 if known is None else math.ceil(known.recuperation * self.session.epoch)

    def find_rate(self, start: Program, *, trained: bool) -> None:
        """Find the learning rate of the search by a range test on the start, unless the settings give one."""
        highest = self.config.highest_trained_rate if trained else self.config.highest_rate
        self.rate = self.session.stage_trainer.rate(start, self.config, "search", highest)

    def warm_up(self, start: Individual, steps: int) -> JobResult:
        """Train the start."""
        patience = self.config.early_stopping
        [ended] = self._train([start], "warm-up", [steps], self.config.weights_epochs, patience)
        return ended

    def train(self, individuals: Sequence[Individual], where: str) -> list[JobResult]:
        """Run a match of each individual, and return the results in this order."""
        return self._train(individuals, where, list(map(self.match_steps, individuals)), self.config.match_epochs)

    def fine_tune(self, state: TrainedState) -> tuple[Program | None, JobResult, int]:
        """Fine-tune a network; return it, `None` if that failed, the last result, and the steps that were spent."""
        config, spent, slowdowns = self.config, 0, state.individual.slowdowns
        while True:
            rate = config.finetune_learning_rate or self._rate(slowdowns)
            recipe = replace(recipe_of(config, self.tracker.reserved, None), optimizer=config.optimizer_at(rate))
            name = "fine-tune" if slowdowns == state.individual.slowdowns else f"fine-tune at {rate:.3g}"
            job = Job(name, state.program, recipe, self.session.seed, objective=self.session.objective)
            [end] = self.session.run_jobs([job], self.tracker.deadline())
            spent += steps_run(end, recipe.steps)
            tried = slowdowns - state.individual.slowdowns
            can_repeat = self.rate is not None and config.finetune_learning_rate is None and tried < RETRIES
            if not end.diverged or not can_repeat or spent > self.tracker.left:
                break
            slowdowns, self.repeated = slowdowns + 1, self.repeated + 1
        return None if end.failure is not None else end.trained(state.program), end, spent

    def _train(
        self,
        individuals: Sequence[Individual],
        where: str,
        steps: list[int],
        epochs: float,
        patience: int | None = None,
    ) -> list[JobResult]:
        """Train individuals; those that diverge again at a lower learning rate, as far as that can be paid for."""
        jobs = [self._job(i, where, n, epochs, patience) for i, n in zip(individuals, steps, strict=True)]
        self.trainings += 1
        ended, names = self._run(where, jobs), [job.name for job in jobs]
        for attempt in range(1, RETRIES + 1):
            again = self._repeatable(jobs, ended)
            for number in again:
                individuals[number].slowdowns += 1
                optimizer = self.config.optimizer_at(self._rate(individuals[number].slowdowns))
                recipe = replace(jobs[number].recipe, optimizer=optimizer)
                jobs[number] = replace(jobs[number], name=f"{names[number]}, retry {attempt}", recipe=recipe)
            if not again:
                break
            self.repeated += len(again)
            for number, end in zip(again, self._run(where, [jobs[number] for number in again]), strict=True):
                ended[number] = end
        for individual, job, end in zip(individuals, jobs, ended, strict=True):
            self._record(individual, job, end)
        return ended

    def _run(self, where: str, jobs: list[Job]) -> list[JobResult]:
        """Run jobs, and charge what they ran."""
        ended = self.session.run_jobs(jobs, self.tracker.deadline(), lambda at, end: self._show(where, jobs[at], end))
        self.tracker.spent += sum(steps_run(end, job.recipe.steps) for job, end in zip(jobs, ended, strict=True))
        return ended

    def _repeatable(self, jobs: Sequence[Job], ended: Sequence[JobResult]) -> list[int]:
        """Return the numbers of the jobs that diverged, the first ones that can be paid for once more."""
        failed = [n for n, end in enumerate(ended) if end.diverged] if self.rate is not None else []
        totals = np.cumsum([jobs[number].recipe.steps for number in failed])
        return failed[: int(np.searchsorted(totals, self.tracker.left, side="right"))]

    def _rate(self, slowdowns: int) -> float | None:
        """Return the learning rate after a number of reductions; `None` if the settings give one."""
        return None if self.rate is None else self.rate * SLOWDOWN**slowdowns

    def _job(self, individual: Individual, where: str, steps: int, epochs: float, patience: int | None) -> Job:
        known = self.latest.get(individual)
        program = individual.program if known is None else known.program
        assert program is not None  # a network that trains has weights
        own = self.session.steps(self.config, epochs)
        recipe = Recipe(
            steps=steps,
            optimizer=self.config.optimizer_at(self._rate(individual.slowdowns)),
            schedule=constant(),
            gradient_clip=self.config.gradient_clip,
            validations=validation_steps(steps, own, epochs),
            early_stopping=patience,
        )
        name = f"{where}: {individual.operation} #{individual.number}"
        work = steps * individual.costs["macs"].value
        return Job(name, program, recipe, mix(self.session.seed, self.trainings), work)

    def _record(self, individual: Individual, job: Job, end: JobResult) -> None:
        """Record the result of a training."""
        if end.stopped:
            return
        steps = steps_run(end, job.recipe.steps)
        if end.failure is not None:
            self.population.rejected[f"{individual.operation}: training diverged"] += 1
            self.drop(individual, "failed", f"diverged: {end.failure}")
            return
        for record in end.records:
            if record["metric"] is not None:
                individual.scores.append((individual.steps + record["step"], record["metric"]))
        individual.records += end.records
        individual.steps += steps
        individual.own_steps += steps
        last = individual.scores[-self.config.rolling_epochs :]
        individual.score = sum(metric for _, metric in last) / len(last)
        self.remember(individual, job.program, end)

    def remember(self, individual: Individual, base: Program, end: JobResult | None) -> None:
        """Keep a network as it is now, with its score."""
        figures = individual.figures
        state = TrainedState(
            individual=individual,
            trial=individual.trial(self.tracker.epoch),
            worth=self.fitness.greedy(figures),
            figures=figures,
            metric=individual.scores[-1][1] if individual.scores else figures.score,
            records=len(individual.records),
            base=base,
            end=end,
        )
        individual.program, self.latest[individual] = None, state
        if self.champion is None or state.worth > self.champion.worth:
            self.champion = state
        self.front.add(state)

    def drop(self, individual: Individual, status: Status, reason: str) -> None:
        """Discard the weights of a network, unless it is the champion or on the front."""
        individual.status, individual.reason, individual.program = status, reason, None
        last = self.latest.pop(individual, None)
        if last is not None and last is not self.champion and last not in self.front.members:
            last.forget()

    def _show(self, where: str, job: Job, end: JobResult) -> None:
        """Update the progress line."""
        if end.stopped:
            return
        self.shown += steps_run(end, job.recipe.steps)
        total, _ = self.length()
        gone = self.shown / self.tracker.epoch if self.tracker.spend.epochs else self.tracker.seconds
        last: dict[str, Any] = {
            "epoch": 0,
            "loss": math.nan,
            "metric": None,
            "lr": math.nan,
            **(end.records or ({},))[-1],
        }
        standing = TrainingProgress(
            stage=where,
            epoch=last["epoch"],
            step=min(round(gone), total),
            steps=total,
            loss=last["loss"],
            metric=last["metric"],
            lr=last["lr"],
            seconds=self.tracker.seconds,
        )
        self.session.trainer.progress.show(standing)


def steps_run(end: JobResult, steps: int) -> int:
    """Return the steps that a training of `steps` steps is charged: fewer if it was stopped early."""
    if end.stopped:
        return 0
    return int(end.records[-1]["step"]) if end.failure is None and end.records else steps


def validation_steps(steps: int, own: int, epochs: float) -> tuple[int, ...]:
    """Return the steps after which validation runs: once an epoch within the last `own` of `steps`."""
    count = min(max(1, round(epochs)), own)  # at most once a step
    return tuple(sorted({steps - own + math.ceil(own * k / count) for k in range(1, count + 1)} - {0}))
