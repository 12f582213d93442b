"""How the networks of a search train, and what is kept of each: who may still win, the best, and the Pareto front."""

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
class State:
    """A network as it was after a training."""

    individual: Individual
    trial: Trial
    worth: Worth
    """Greedily."""
    figures: Figures
    metric: float
    """The validation metric of these very weights."""
    records: int
    """Of its training curve, so many were there then."""
    base: Program
    """What trained."""
    end: JobResult | None
    """What it came to; `None`: nothing trained, and `base` is the network itself."""

    @cached_property
    def program(self) -> Program:
        """The network; its weights are fetched when it is first asked for."""
        if self.end is not None:
            self.base, self.end = self.end.trained(self.base), None
        return self.base

    def along(self, axis: Metric) -> float | None:
        """Its cost on one axis; `None` where that was not measured."""
        return self.trial.cost(axis)

    def records_of(self, ancestor: Individual) -> int:
        """Of an ancestor's training curve, or its own, how many records led here."""
        return self.records if ancestor is self.individual else len(ancestor.records)

    def forget(self) -> None:
        """Give up weights that nobody asked for."""
        if self.end is not None:
            self.end.forget()


@dataclass(eq=False)
class SearchState:
    """Trains networks, and remembers what is worth it."""

    config: Ectonas
    session: Session
    population: Population
    fitness: Fitness
    front: Front[State]
    purse: SpendTracker
    latest: dict[Individual, State] = field(default_factory=dict)
    """Of everyone who may still win."""
    champion: State | None = None
    """Of all that ever trained, the one with the best score."""
    trainings: int = 0
    """Rounds of them."""
    shown: int = 0
    """Steps that the progress line has counted."""
    rate: float | None = None
    """Learning rate that a range test found; `None` if the settings give one, or an optimizer."""
    repeated: int = 0
    """Trainings that diverged and were repeated at a lower learning rate."""

    def length(self) -> tuple[int, str]:
        """How long the search is, for the screen, in epochs or else in seconds; and what is measured."""
        spend = self.purse.spend
        return math.ceil(spend.epochs or spend.seconds or 1), self.session.task.metric_name

    def match_steps(self, individual: Individual) -> int:
        """Of its next match; before its first one it recovers."""
        steps = self.session.steps(self.config, self.config.match_epochs)
        return steps if individual.own_steps else steps + self._recovery(individual.operation)

    def match_epochs(self, group: Sequence[Individual]) -> float:
        """Of the next match of a group."""
        return sum(map(self.match_steps, group)) / self.purse.epoch

    def generation_epochs(self, children: Mapping[str, int]) -> float:
        """What a generation takes of which so many children are made by each operation."""
        config, rng = self.config, np.random.default_rng(0)
        entries = sum(self._recovery(operation) * many for operation, many in children.items())
        match = self.session.steps(config, config.match_epochs)
        pools, winners = list(children.values()), 1 if len(children) >= config.parents else config.parents
        for goal in (winners, config.parents):
            for left in reversed(range(config.rounds)):
                entries += match * sum(pools)
                pools = [len(drawn(range(many), left=left, winners=goal, rng=rng)) for many in pools]
            pools = [sum(pools)]
        return entries / self.purse.epoch

    def _recovery(self, operation: str) -> int:
        """Steps before the first match."""
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

    def fine_tune(self, state: State) -> tuple[Program | None, JobResult, int]:
        """Fine-tune a network; return it, `None` if that failed, the last result, and the steps that were spent."""
        config, spent, slowdowns = self.config, 0, state.individual.slowdowns
        while True:
            rate = config.finetune_learning_rate or self._rate(slowdowns)
            recipe = replace(recipe_of(config, self.purse.reserved, None), optimizer=config.optimizer_at(rate))
            name = "fine-tune" if slowdowns == state.individual.slowdowns else f"fine-tune at {rate:.3g}"
            job = Job(name, state.program, recipe, self.session.seed, objective=self.session.objective)
            [end] = self.session.run_jobs([job], self.purse.deadline())
            spent += steps_run(end, recipe.steps)
            tried = slowdowns - state.individual.slowdowns
            can_repeat = self.rate is not None and config.finetune_learning_rate is None and tried < RETRIES
            if not end.diverged or not can_repeat or spent > self.purse.left:
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
            self._take(individual, job, end)
        return ended

    def _run(self, where: str, jobs: list[Job]) -> list[JobResult]:
        """Run jobs, and charge what they ran."""
        ended = self.session.run_jobs(jobs, self.purse.deadline(), lambda at, end: self._show(where, jobs[at], end))
        self.purse.spent += sum(steps_run(end, job.recipe.steps) for job, end in zip(jobs, ended, strict=True))
        return ended

    def _repeatable(self, jobs: Sequence[Job], ended: Sequence[JobResult]) -> list[int]:
        """Return the numbers of the jobs that diverged, the first ones that can be paid for once more."""
        failed = [n for n, end in enumerate(ended) if end.diverged] if self.rate is not None else []
        totals = np.cumsum([jobs[number].recipe.steps for number in failed])
        return failed[: int(np.searchsorted(totals, self.purse.left, side="right"))]

    def _rate(self, slowdowns: int) -> float | None:
        """Return the learning rate after a number of reductions; `None` if the settings give one."""
        return None if self.rate is None else self.rate * SLOWDOWN**slowdowns

    def _job(self, individual: Individual, where: str, steps: int, epochs: float, patience: int | None) -> Job:
        known = self.latest.get(individual)
        program = individual.program if known is None else known.program
        assert program is not None  # what trains has weights
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

    def _take(self, individual: Individual, job: Job, end: JobResult) -> None:
        """Take over what a training came to."""
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
        """What a network is now, with its score."""
        figures = individual.figures
        state = State(
            individual=individual,
            trial=individual.trial(self.purse.epoch),
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
        """Let go of a network's weights, unless it is the best in something."""
        individual.status, individual.reason, individual.program = status, reason, None
        last = self.latest.pop(individual, None)
        if last is not None and last is not self.champion and last not in self.front.members:
            last.forget()

    def _show(self, where: str, job: Job, end: JobResult) -> None:
        """Where the search is, on the screen."""
        if end.stopped:
            return
        self.shown += steps_run(end, job.recipe.steps)
        total, _ = self.length()
        gone = self.shown / self.purse.epoch if self.purse.spend.epochs else self.purse.seconds
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
            seconds=self.purse.seconds,
        )
        self.session.trainer.progress.show(standing)


def steps_run(end: JobResult, steps: int) -> int:
    """Return the steps that a training of `steps` steps is charged: fewer if it was stopped early."""
    if end.stopped:
        return 0
    return int(end.records[-1]["step"]) if end.failure is None and end.records else steps


def validation_steps(steps: int, own: int, epochs: float) -> tuple[int, ...]:
    """After which of `steps` the validation data are looked at: once an epoch of the last `own`."""
    many = min(max(1, round(epochs)), own)  # no more than once a step
    return tuple(sorted({steps - own + math.ceil(own * k / many) for k in range(1, many + 1)} - {0}))
