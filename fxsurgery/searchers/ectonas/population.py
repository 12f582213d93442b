"""The networks of an evolutionary search: how they come about, what they are, and what was refused."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxsurgery.budget import CostEstimate, Metric
from fxsurgery.errors import PassCrashedError
from fxsurgery.match import Match, Refusal
from fxsurgery.passes import parse
from fxsurgery.program import Program
from fxsurgery.runs.identity import structural_hash
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.searchers.common.cost_oracle import CostOracle
from fxsurgery.searchers.common.moves import Amounts, apply_move, moves
from fxsurgery.searchers.common.trial_journal import Generation, recall_generation
from fxsurgery.searchers.common.trials import IDENTITY, START, Status, Trial
from fxsurgery.searchers.ectonas.fitness import Figures
from fxsurgery.seeding import mix


@dataclass(eq=False)
class Individual:
    """A network of the search, as far as it has come."""

    number: int
    parent: "Individual | None"
    generation: int
    operation: str
    move: str
    program: Program | None
    """With its present weights; let go of when it is out. It shares tensors with its parent until it trains."""
    costs: dict[Metric, CostEstimate]
    status: Status = "undecided"
    reason: str = "not decided"
    steps: int = 0
    """Trained, its ancestors' among them."""
    own_steps: int = 0
    score: float | None = None
    scores: list[tuple[int, float]] = field(default_factory=list)
    """After each of its own epochs: steps trained, and validation metric."""
    records: list[Mapping[str, Any]] = field(default_factory=list)
    slowdowns: int = 0
    """Reductions of the learning rate since the start, by it and by its ancestors, each after a training diverged."""

    @property
    def figures(self) -> Figures:
        """What it is ranked by; with a score of NaN where it never trained to an end."""
        score = float("nan") if self.score is None else self.score
        return Figures(score=score, costs={metric: found.high for metric, found in self.costs.items()})

    def line(self) -> "list[Individual]":
        """Its ancestors and itself, the start first."""
        found = [self]
        while (parent := found[-1].parent) is not None:
            found.append(parent)
        return found[::-1]

    def trial(self, epoch: float) -> Trial:
        """Return its record; `epoch` is in steps."""
        return Trial(
            number=self.number,
            parent=None if self.parent is None else self.parent.number,
            generation=self.generation,
            operation=self.operation,
            move=self.move,
            costs={metric: found.value for metric, found in self.costs.items()},
            epochs=self.steps / epoch,
            score=self.score,
            scores=tuple((steps / epoch, metric) for steps, metric in self.scores),
            status=self.status,
            reason=self.reason,
        )


@dataclass(eq=False)
class Population:
    """Every network so far, and how the next ones are made."""

    operations: Sequence[str]
    amounts: Amounts
    seed: int
    most_params: int
    """No network has more, unless the start has: then none has more than the start, enlarged by `most_growth`."""
    most_growth: float
    """By this share of its parent's parameters a network may be larger."""
    costs: CostOracle = field(default_factory=CostOracle)
    measured: Sequence[Metric] = ()
    """Metrics of each network that are asked of `costs`, beside those that are always counted."""
    run: RunDir = field(default_factory=RunDir)
    """Recalls the trials that were made before a kill."""
    everyone: list[Individual] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    crashes: list[str] = field(default_factory=list)
    """Of passes: what each said."""
    _seen: dict[str, int] = field(default_factory=dict)
    """The first network of each hash, by number."""

    def start(self, program: Program) -> Individual:
        """The first network."""
        # Its hash is not noted: the identity of the start is no duplicate, and shall train on.
        trial = Trial(number=0, parent=None, generation=0, operation=START, costs=self._counted(program))
        return self._joined(trial, None, program)

    def children(self, parents: Sequence[Individual], generation: int) -> list[Individual]:
        """One child for each parent, operation and place; those that are worth training."""
        made = dict[int, Program]()
        by_number = {parent.number: parent for parent in parents}
        found = recall_generation(
            self.run, generation, list(by_number), len(self.everyone), lambda: self._bred(parents, generation, made)
        )
        self.rejected.update(found.rejected)
        self.crashes += found.crashes
        children = list[Individual]()
        for trial, known in zip(found.trials, found.hashes, strict=True):
            parent = None if trial.parent is None else by_number[trial.parent]
            self._seen.setdefault(known, trial.number)
            if trial.status == "duplicate":
                self.duplicates += 1
                self._joined(trial, parent, None)
            else:
                children.append(self._joined(trial, parent, made.get(trial.number) or _rebuilt(trial, parent)))
        return children

    def _bred(self, parents: Sequence[Individual], generation: int, programs: dict[int, Program]) -> Generation:
        """The trials of a generation; their programs go into `programs`, by number."""
        trials, hashes, seen = list[Trial](), list[str](), dict(self._seen)
        rejected, crashes = Counter[str](), list[str]()
        for parent, operation in ((p, o) for p in parents for o in self.operations):
            assert parent.program is not None  # whoever is a parent has its weights
            for move, made in self._made(parent.program, operation, generation, crashes):
                refused = made if isinstance(made, Refusal) else self._too_large(made, parent)
                if refused is not None:
                    rejected[f"{operation}: {refused}"] += 1
                    continue
                assert isinstance(made, Program)  # what is not refused
                number, known = len(self.everyone) + len(trials), structural_hash(made)
                first = seen.setdefault(known, number)
                double: dict[str, Any] = (
                    {} if first == number else {"status": "duplicate", "reason": f"duplicate of {first}"}
                )
                trials.append(
                    Trial(
                        number=number, parent=parent.number, generation=generation, operation=operation, move=move,
                        costs=self._counted(made), **double,
                    )
                )  # fmt: skip
                hashes.append(known)
                if first == number:
                    programs[number] = made
        return Generation(trials=tuple(trials), hashes=tuple(hashes), rejected=rejected, crashes=tuple(crashes))

    def _made(
        self, program: Program, operation: str, generation: int, crashes: list[str]
    ) -> Iterator[tuple[str, Match[Program]]]:
        """What each move of one operation makes of a program, or why it makes nothing."""
        if operation == IDENTITY:
            yield "", program
            return
        try:
            found = moves(program, operation, self.amounts, mix(self.seed, generation))
        except PassCrashedError as error:
            yield operation, _crashed(error, crashes)
            return
        for move in found:
            try:
                made = apply_move(program, move)
            except PassCrashedError as error:
                made = _crashed(error, crashes)
            yield str(move), made

    def _too_large(self, program: Program, parent: Individual) -> Refusal | None:
        """Why a network is beyond the caps."""
        start, before = self.everyone[0].costs["params"].value, parent.costs["params"].value
        params = self.costs.cost(program, "params").value
        most = self.most_params if start <= self.most_params else (1 + self.most_growth) * start
        if params > most:
            return Refusal("output", f"more than {most:,.0f} parameters")
        if params > (1 + self.most_growth) * before:
            return Refusal("output", f"more than {self.most_growth:.0%} more parameters than its parent")
        return None

    def _counted(self, program: Program) -> dict[Metric, float]:
        """What is counted of every network, duplicates too."""
        counted: tuple[Metric, ...] = ("params", "macs")
        return {metric: self.costs.cost(program, metric).value for metric in counted}

    def _joined(self, trial: Trial, parent: Individual | None, program: Program | None) -> Individual:
        """A network that takes part, or one of which there is a duplicate."""
        costs = {metric: CostEstimate.exactly(value) for metric, value in trial.costs.items()}
        if program is not None:
            costs |= {metric: self.costs.cost(program, metric) for metric in self.measured}
        individual = Individual(
            trial.number, parent, trial.generation, trial.operation, trial.move, program, costs, trial.status,
            trial.reason, 0 if parent is None else parent.steps,
            slowdowns=0 if parent is None else parent.slowdowns,
        )  # fmt: skip
        self.everyone.append(individual)
        return individual


def _rebuilt(trial: Trial, parent: Individual | None) -> Program:
    """The program of a trial that was made before a kill, or by the first process of several."""
    assert parent is not None  # the start is not rebuilt
    assert parent.program is not None  # whoever is a parent has its weights
    return parse(trial.move)(parent.program).program if trial.move else parent.program


def _crashed(error: PassCrashedError, crashes: list[str]) -> Refusal:
    """Why a move came to nothing: a search of hours shall not end by a bug at one place, nor pass over it."""
    crashes.append(str(error))
    return Refusal("output", "the pass crashed, which is a bug of fxsurgery")
