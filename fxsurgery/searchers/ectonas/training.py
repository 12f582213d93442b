"""Train the networks of a search, and keep those that may still win, the best one and the Pareto front."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
from fxsurgery.seeding import mix
from fxsurgery.training import Recipe, constant, cosine
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
    """Number of steps shown on the progress line."""

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

    def warm_up(self, start: Individual, steps: int) -> JobResult:
        """Train the start."""
        [ended] = self._train([start], "warm-up", [steps], self.config.weights_epochs)
        return ended

    def train(self, individuals: Sequence[Individual], where: str) -> list[JobResult]:
        """Train each network for its next match; return the results in the same order."""
        return self._train(individuals, where, list(map(self.match_steps, individuals)), self.config.match_epochs)

    def fine_tune(self, state: TrainedState) -> tuple[Program | None, JobResult]:
        """Fine-tune a network at a rate that falls to 0; return it with the result, `None` if that failed."""
        recipe = Recipe(
            steps=self.tracker.reserved,
            optimizer=self.config.finetune_optimizer,
            schedule=cosine(),
            gradient_clip=self.session.clip(self.config),
        )
        job = Job("fine-tune", state.program, recipe, self.session.seed)
        [end] = self.session.run_jobs([job], self.tracker.deadline())
        return None if end.failure is not None else end.trained(state.program), end

    def _train(self, individuals: Sequence[Individual], where: str, steps: list[int], epochs: float) -> list[JobResult]:
        jobs = [self._job(i, where, n, epochs) for i, n in zip(individuals, steps, strict=True)]
        self.trainings += 1
        ended = self.session.run_jobs(jobs, self.tracker.deadline(), lambda at, end: self._show(where, jobs[at], end))
        for individual, job, end in zip(individuals, jobs, ended, strict=True):
            self._record(individual, job, end)
        return ended

    def _job(self, individual: Individual, where: str, steps: int, epochs: float) -> Job:
        known = self.latest.get(individual)
        program = individual.program if known is None else known.program
        assert program is not None  # a network that trains has weights
        own = self.session.steps(self.config, epochs)
        recipe = Recipe(
            steps=steps,
            optimizer=self.config.own_optimizer,
            schedule=constant(),
            gradient_clip=self.session.clip(self.config),
            validations=validation_steps(steps, own, epochs),
        )
        name = f"{where}: {individual.operation} #{individual.number}"
        work = steps * individual.costs["macs"].value
        return Job(name, program, recipe, mix(self.session.seed, self.trainings), work)

    def _record(self, individual: Individual, job: Job, end: JobResult) -> None:
        """Record the result of a training."""
        if end.stopped:
            return
        self.tracker.spent += job.recipe.steps
        if end.failure is not None:
            self.population.rejected[f"{individual.operation}: training diverged"] += 1
            self.drop(individual, "failed", f"diverged: {end.failure}")
            return
        for record in end.records:
            if record["metric"] is not None:
                individual.scores.append((individual.steps + record["step"], record["metric"]))
        individual.records += end.records
        individual.steps += job.recipe.steps
        individual.own_steps += job.recipe.steps
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
        self.shown += job.recipe.steps
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


def validation_steps(steps: int, own: int, epochs: float) -> tuple[int, ...]:
    """Return the steps after which validation runs: once an epoch within the last `own` of `steps`."""
    count = min(max(1, round(epochs)), own)  # at most once a step
    return tuple(sorted({steps - own + math.ceil(own * k / count) for k in range(1, count + 1)} - {0}))
