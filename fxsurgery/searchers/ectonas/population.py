"""The networks of an evolutionary search, how they are made, and the moves that were rejected."""

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
from fxsurgery.searchers.common.width_constraints import FREE, WidthConstraints
from fxsurgery.searchers.ectonas.fitness import Figures
from fxsurgery.seeding import mix


@dataclass(eq=False)
class Individual:
    """A network of the search with its training so far."""

    number: int
    parent: "Individual | None"
    generation: int
    operation: str
    move: str
    program: Program | None
    """The network with its current weights; `None` once it is eliminated. It shares tensors with its parent until it
    trains."""
    costs: dict[Metric, CostEstimate]
    status: Status = "undecided"
    reason: str = "not decided"
    steps: int = 0
    """Number of steps trained, including those of its ancestors."""
    own_steps: int = 0
    score: float | None = None
    scores: list[tuple[int, float]] = field(default_factory=list)
    """Pairs of steps trained and validation metric, one per epoch of its own."""
    records: list[Mapping[str, Any]] = field(default_factory=list)
    slowdowns: int = 0
    """Reductions of the learning rate since the start, by it and by its ancestors, each after a training diverged."""

    @property
    def figures(self) -> Figures:
        """The values that it is ranked by; the score is NaN if it never finished a training."""
        score = float("nan") if self.score is None else self.score
        return Figures(score=score, costs={metric: found.high for metric, found in self.costs.items()})

    def line(self) -> "list[Individual]":
        """Return its ancestors and itself, the start first."""
        found = [self]
        while (parent := found[-1].parent) is not None:
            found.append(parent)
        return found[::-1]

    def trial(self, epoch: float) -> Trial:
        """Return its record; `epoch`: number of steps per epoch."""
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
    """All networks so far; makes the next ones."""

    operations: Sequence[str]
    amounts: Amounts
    seed: int
    most_params: int
    """Maximum number of parameters of a network; if the start has more, the start enlarged by `most_growth`."""
    most_growth: float
    """Maximum growth of a network over its parent, as a fraction of the parent's parameters."""
    constraints: WidthConstraints = FREE
    """Names the layers that no move may change."""
    costs: CostOracle = field(default_factory=CostOracle)
    measured: Sequence[Metric] = ()
    """Further metrics that are measured of each network."""
    run: RunDir = field(default_factory=RunDir)
    """The run whose journal recalls the trials of an interrupted search."""
    everyone: list[Individual] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    crashes: list[str] = field(default_factory=list)
    """Messages of passes that crashed."""
    _seen: dict[str, int] = field(default_factory=dict)
    """Number of the first network of each structural hash."""

    def start(self, program: Program) -> Individual:
        """Add the first network."""
        # Its hash is not recorded: the identity of the start is not a duplicate and must train.
        trial = Trial(number=0, parent=None, generation=0, operation=START, costs=self._counted(program))
        return self._added(trial, None, program)

    def children(self, parents: Sequence[Individual], generation: int) -> list[Individual]:
        """Make a child for each parent, operation and place; return those that are not duplicates."""
        made = dict[int, Program]()
        by_number = {parent.number: parent for parent in parents}
        found = recall_generation(
            self.run,
            generation,
            list(by_number),
            len(self.everyone),
            lambda: self._made_trials(parents, generation, made),
        )
        self.rejected.update(found.rejected)
        self.crashes += found.crashes
        children = list[Individual]()
        for trial, known in zip(found.trials, found.hashes, strict=True):
            parent = None if trial.parent is None else by_number[trial.parent]
            self._seen.setdefault(known, trial.number)
            if trial.status == "duplicate":
                self.duplicates += 1
                self._added(trial, parent, None)
            else:
                children.append(self._added(trial, parent, made.get(trial.number) or _rebuilt(trial, parent)))
        return children

    def _made_trials(self, parents: Sequence[Individual], generation: int, programs: dict[int, Program]) -> Generation:
        """Return the trials of a generation; their programs are put into `programs`, by number."""
        trials, hashes, seen = list[Trial](), list[str](), dict(self._seen)
        rejected, crashes = Counter[str](), list[str]()
        for parent, operation in ((p, o) for p in parents for o in self.operations):
            assert parent.program is not None  # a parent has its weights
            for move, made in self._made(parent.program, operation, generation, crashes):
                refused = made if isinstance(made, Refusal) else self._too_large(made, parent)
                if refused is not None:
                    rejected[f"{operation}: {refused}"] += 1
                    continue
                assert isinstance(made, Program)  # since it was not refused
                number, known = len(self.everyone) + len(trials), structural_hash(made)
                first = seen.setdefault(known, number)
                duplicate: dict[str, Any] = (
                    {} if first == number else {"status": "duplicate", "reason": f"duplicate of {first}"}
                )
                trials.append(
                    Trial(
                        number=number, parent=parent.number, generation=generation, operation=operation, move=move,
                        costs=self._counted(made), **duplicate,
                    )
                )  # fmt: skip
                hashes.append(known)
                if first == number:
                    programs[number] = made
        return Generation(trials=tuple(trials), hashes=tuple(hashes), rejected=rejected, crashes=tuple(crashes))

    def _made(
        self, program: Program, operation: str, generation: int, crashes: list[str]
    ) -> Iterator[tuple[str, Match[Program]]]:
        """Yield each move of one operation with the program that it gives, or a refusal."""
        if operation == IDENTITY:
            yield "", program
            return
        try:
            found = moves(program, operation, self.amounts, mix(self.seed, generation), self.constraints)
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
        """Return why a network is too large; `None` if it is not."""
        start, before = self.everyone[0].costs["params"].value, parent.costs["params"].value
        params = self.costs.cost(program, "params").value
        most = self.most_params if start <= self.most_params else (1 + self.most_growth) * start
        if params > most:
            return Refusal("output", f"more than {most:,.0f} parameters")
        if params > (1 + self.most_growth) * before:
            return Refusal("output", f"more than {self.most_growth:.0%} more parameters than its parent")
        return None

    def _counted(self, program: Program) -> dict[Metric, float]:
        """Return the costs that are counted for every network, including duplicates."""
        counted: tuple[Metric, ...] = ("params", "macs")
        return {metric: self.costs.cost(program, metric).value for metric in counted}

    def _added(self, trial: Trial, parent: Individual | None, program: Program | None) -> Individual:
        """Add a network that competes, or a duplicate (without a program)."""
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
    """Return the program of a trial that an interrupted run made, or the first of several processes."""
    assert parent is not None  # the start is not rebuilt
    assert parent.program is not None  # a parent has its weights
    return parse(trial.move)(parent.program).program if trial.move else parent.program


def _crashed(error: PassCrashedError, crashes: list[str]) -> Refusal:
    """Record a crash and refuse the move: a bug at one place must neither end a search of hours nor be ignored."""
    crashes.append(str(error))
    return Refusal("output", "the pass crashed, which is a bug of fxsurgery")
