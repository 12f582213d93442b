"""Evolutions that were never trained: real networks by real passes, with scores that are drawn."""

import functools
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from fxsurgery.analysis.cost import cost
from fxsurgery.capture import capture
from fxsurgery.passes import AddConvCell, Deepen, LowRank, RemoveLayer, SvdShrink, Widen
from fxsurgery.program import Program
from fxsurgery.result import BeforeAfter, Result
from fxsurgery.searchers.common.pareto import Front, ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord, Status, Trial
from fxsurgery.surgery import Rewrite
from fxsurgery.training import Score
from zoo import lively

OPERATIONS = {
    "add-cell": AddConvCell,
    "add-dense": Deepen,
    "add-channels": Widen,
    "remove-units": SvdShrink,
    "remove-dense": RemoveLayer,
    "factorize": LowRank,
}
EPOCHS = 5.0
PER_GENERATION = 8
OUTRANKED: tuple[Status, str] = ("outranked", "lost in competition 2")


class Start(nn.Module):
    """(batch, 1, 8, 8) -> (batch, 4), a small conv net that grows and shrinks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(384, 12), nn.ReLU(), nn.Linear(12, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x)))


@dataclass
class Drawn:
    """An evolution on its way."""

    rng: random.Random
    growing: bool
    trials: list[Trial] = field(default_factory=list)
    programs: dict[int, Program] = field(default_factory=dict)
    latent: list[float] = field(default_factory=list)
    """How good each network is."""

    def add(self, program: Program, parent: int | None, generation: int, operation: str, move: str = "") -> int:
        """A candidate that has trained as long as its kind does."""
        number = len(self.trials)
        ancestor = None if parent is None else self.trials[parent]
        before = 0.0 if ancestor is None else ancestor.epochs
        taken = cost(program)
        good = 0.3
        if ancestor is not None:
            good = self.latent[ancestor.number] + 0.02 + self.rng.uniform(-0.06, 0.06)
            good += 0.04 * math.log(taken.params / ancestor.costs["params"])
        self.latent.append(min(good, 0.95))
        rise = [0.12 if i == 0 else 0.05 if i == 1 else 0.0 for i in range(int(EPOCHS))]
        noise = [self.rng.uniform(-0.01, 0.01) for _ in rise]
        scores = [self.latent[-1] - low + off for low, off in zip(rise, noise, strict=True)]
        self.trials.append(
            Trial(
                number=number, parent=parent, generation=generation, operation=operation, move=move,
                costs={"params": taken.params, "macs": taken.macs}, epochs=before + EPOCHS, score=sum(scores[-3:]) / 3,
                scores=tuple((before + i + 1, s) for i, s in enumerate(scores)), status="eliminated",
                reason="lost in competition 1",
            )
        )  # fmt: skip
        self.programs[number] = program
        return number

    def ranked(self, number: int) -> tuple[float, float]:
        """The better, and where it is asked for, the larger first."""
        candidate = self.trials[number]
        return (candidate.costs["params"] if self.growing else 0.0, candidate.score or 0.0)

    def end(self, number: int, status: Status, reason: str = "") -> None:
        self.trials[number] = replace(self.trials[number], status=status, reason=reason or status)


@functools.cache
def evolved(*, generations: int = 4, growing: bool = False, seed: int = 0) -> Result:
    """An evolution's result.

    Args:
        generations: how many.
        growing: whether the largest of each generation live on.
        seed: of the scores, and of what lives on.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        start = capture(lively(Start()), torch.randn(2, 1, 8, 8))
    drawn = Drawn(random.Random(seed), growing)
    parents = [drawn.add(start, None, 0, "start")]
    for generation in range(1, generations + 1):
        parents = _generation(drawn, parents, generation)
    winner = parents[0]
    for number in parents:
        drawn.end(number, *(("winner",) if number == winner else OUTRANKED))
    _unlucky(drawn, parents[-1], generations)
    return _result(drawn, winner)


def _generation(drawn: Drawn, parents: list[int], generation: int) -> list[int]:
    """The next parents."""
    born = [drawn.add(drawn.programs[p], p, generation, "identity") for p in parents]
    moves = [(p, name, move) for p in parents for name, move in _moves(drawn.programs[p])]
    for parent, name, move in drawn.rng.sample(moves, min(PER_GENERATION, len(moves))):
        made = move(drawn.programs[parent])
        if made.changes:
            born.append(drawn.add(made.program, parent, generation, name, str(move)))
    best = sorted(born, key=drawn.ranked, reverse=True)
    for number in best[2:5]:
        drawn.end(number, *OUTRANKED)
    for parent in parents:
        drawn.end(parent, "parent")
    return best[:2]


def _moves(program: Program) -> Iterator[tuple[str, Rewrite]]:
    for name, kind in OPERATIONS.items():
        for move in itertools.islice(kind.candidates(program), 2):
            yield name, move


def _unlucky(drawn: Drawn, parent: int, generation: int) -> None:
    """One that diverged, one that was another's double, and one that the budget ended."""
    known = drawn.trials[parent]
    ends: tuple[tuple[Status, str], ...] = (
        ("failed", "diverged: the loss is nan at step 12"),
        ("duplicate", f"duplicate of {parent}"),
        ("undecided", "not decided"),
    )
    for status, reason in ends:
        number = drawn.add(drawn.programs[parent], parent, generation, "add-channels")
        untold = {"score": None, "scores": (), "epochs": known.epochs}
        drawn.trials[number] = replace(drawn.trials[number], status=status, reason=reason, **untold)


def _result(drawn: Drawn, winner: int) -> Result:
    front = Front("params")
    for candidate in drawn.trials:
        if candidate.scores:
            score = Score(candidate.scores[-1][1], 1.5, 100, {"accuracy": candidate.scores[-1][1]})
            front.add(ParetoMember(drawn.programs[candidate.number], candidate, score))
    evolution = SearchRecord(
        trials=tuple(drawn.trials), winner=winner, spent=EPOCHS * (len(drawn.trials) - 3), allowed=1000.0,
        rejected={"remove-dense: nothing is left to remove": 4, "add-cell: a map of 1 x 1 cannot be pooled": 2},
        duplicates=1, lost_workers=2,
    )  # fmt: skip
    last = drawn.trials[winner].scores[-1][1]
    return Result(
        program=drawn.programs[winner],
        original=drawn.programs[0],
        metric_name="accuracy",
        metrics={"val": BeforeAfter(drawn.trials[0].scores[-1][1], last), "test": BeforeAfter(0.29, last - 0.01)},
        figures={"loss (val)": BeforeAfter(2.0, 1.0), "accuracy (val)": BeforeAfter(0.3, last)},
        notes=("a note",),
        seed=seed_of(drawn),
        asked={"method": "ectonas", "model": "Start", "settings": {"greediness": 0.5}},
        search=evolution,
        pareto=front.members,
    )


def seed_of(drawn: Drawn) -> int:
    """A number that differs between evolutions."""
    return len(drawn.trials)
