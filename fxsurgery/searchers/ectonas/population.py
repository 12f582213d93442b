"""The networks of an evolutionary search: how they come about, what they are, and what was refused."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxsurgery.analysis.cost import cost
from fxsurgery.budget import Cost, LatencyEstimate
from fxsurgery.errors import PassCrashedError
from fxsurgery.program import Program
from fxsurgery.runs.identity import likeness
from fxsurgery.searchers.common.evolution import IDENTITY, START, Candidate
from fxsurgery.searchers.common.latency import Measure
from fxsurgery.searchers.common.moves import Amounts, born, moves
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
    cost: Cost
    latency: LatencyEstimate | None = None
    steps: int = 0
    """Trained, its ancestors' among them."""
    own_steps: int = 0
    score: float | None = None
    scores: list[tuple[int, float]] = field(default_factory=list)
    """After each of its own epochs: steps trained, and validation metric."""
    records: list[Mapping[str, Any]] = field(default_factory=list)
    fate: str = "not decided"

    @property
    def figures(self) -> Figures:
        """What it is ranked by; with a score of NaN where it never trained to an end."""
        score = float("nan") if self.score is None else self.score
        return Figures(score=score, cost=self.cost, latency_ms=None if self.latency is None else self.latency.high_ms)

    def line(self) -> "list[Individual]":
        """Its ancestors and itself, the start first."""
        found = [self]
        while (parent := found[-1].parent) is not None:
            found.append(parent)
        return found[::-1]

    def told(self, epoch: float) -> Candidate:
        """What there is to tell of it; `epoch` is in steps."""
        return Candidate(
            number=self.number,
            parent=None if self.parent is None else self.parent.number,
            generation=self.generation,
            operation=self.operation,
            move=self.move,
            params=self.cost.params,
            macs=self.cost.macs,
            latency_ms=None if self.latency is None else self.latency.ms,
            epochs=self.steps / epoch,
            score=self.score,
            scores=tuple((steps / epoch, metric) for steps, metric in self.scores),
            fate=self.fate,
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
    measure: Measure | None = None
    """Measures the latency of each network, where it matters."""
    everyone: list[Individual] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    duplicates: int = 0
    crashes: list[str] = field(default_factory=list)
    """Of passes: what each said."""
    _seen: dict[str, Individual] = field(default_factory=dict)

    def start(self, program: Program) -> Individual:
        """The first network."""
        return self._added(None, 0, START, "", program)

    def children(self, parents: Sequence[Individual], generation: int) -> list[Individual]:
        """One child for each parent, operation and place; those that are worth training."""
        found = list[Individual]()
        for parent in parents:
            for operation in self.operations:
                found += self._by(parent, operation, generation)
        return found

    def _by(self, parent: Individual, operation: str, generation: int) -> Iterator[Individual]:
        """The children that one operation makes of one parent."""
        assert parent.program is not None  # whoever is a parent has its weights
        for move, made in self._made(parent.program, operation, generation):
            if isinstance(made, str):
                self.rejected[f"{operation}: {made}"] += 1
            elif reason := self._too_large(made, parent):
                self.rejected[f"{operation}: {reason}"] += 1
            else:
                child = self._added(parent, generation, operation, move, made)
                if child.program is not None:
                    yield child

    def _made(self, program: Program, operation: str, generation: int) -> Iterator[tuple[str, Program | str]]:
        """What each move of one operation makes of a program, or why it makes nothing."""
        if operation == IDENTITY:
            yield "", program
            return
        try:
            found = moves(program, operation, self.amounts, mix(self.seed, generation))
        except PassCrashedError as error:
            yield operation, self._crashed(error)
            return
        for move in found:
            try:
                made = born(program, move)
            except PassCrashedError as error:
                made = self._crashed(error)
            yield str(move), made

    def _crashed(self, error: PassCrashedError) -> str:
        """Why a move came to nothing: a search of hours shall not end by a bug at one place, nor pass over it."""
        self.crashes.append(str(error))
        return "the pass crashed, which is a bug of fxsurgery"

    def _too_large(self, program: Program, parent: Individual) -> str | None:
        """Why a network is beyond the caps."""
        params, start = cost(program).params, self.everyone[0].cost.params
        most = self.most_params if start <= self.most_params else (1 + self.most_growth) * start
        if params > most:
            return f"more than {most:,.0f} parameters"
        if params > (1 + self.most_growth) * parent.cost.params:
            return f"more than {self.most_growth:.0%} more parameters than its parent"
        return None

    def _added(
        self, parent: Individual | None, generation: int, operation: str, move: str, program: Program
    ) -> Individual:
        number = len(self.everyone)
        made = Individual(number, parent, generation, operation, move, program, cost(program))
        if parent is not None:
            made.steps = parent.steps
        self.everyone.append(made)
        # The start itself is no child: its identity is the same, and shall train on.
        known = made if parent is None else self._seen.setdefault(likeness(program), made)
        if known is not made:
            self.duplicates += 1
            made.program, made.fate = None, f"duplicate of {known.number}"
        elif self.measure is not None:
            made.latency = self.measure(program)
        return made
