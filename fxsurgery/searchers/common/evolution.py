"""What an evolutionary search went through: every candidate with its parent, its move, its scores and its end."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import Any, Literal

from torch import fx
from typing_extensions import override

from fxsurgery.analysis.cost import cost
from fxsurgery.budget import Cost
from fxsurgery.program import Program
from fxsurgery.training import Score

Axis = Literal["params", "macs", "latency_ms"]
START, IDENTITY = "start", "identity"
"""Operations that change nothing."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One network of the search, the start being number 0. Plain values alone."""

    number: int
    parent: int | None
    """Number of the network that it was made of; `None` for the start."""
    generation: int
    """0 for the start."""
    operation: str
    """`start`, `identity`, or what was done to the parent: `add-cell`, `remove-units`, ..."""
    move: str = ""
    """The pass that did it, as text; nothing for the start and the identity."""
    params: int
    macs: int
    latency_ms: float | None = None
    """Where it was measured."""
    epochs: float = 0.0
    """Trained, its ancestors' epochs among them."""
    score: float | None = None
    """The validation metric, averaged over the last epochs; `None` where it never trained to an end."""
    scores: tuple[tuple[float, float], ...] = ()
    """After each of its own epochs: epochs trained, its ancestors' among them, and validation metric."""
    fate: str = ""
    """`parent`, `winner`, `lost in competition 1`, `duplicate of 5`, `diverged: ...`, `not decided`, ..."""


@dataclass(frozen=True, kw_only=True)
class Evolution:
    """A whole search. Plain values alone."""

    candidates: tuple[Candidate, ...]
    """By number."""
    winner: int
    spent: float
    """Epochs, over all candidates, the warm-up and any fine-tuning too, but not matches that the clock stopped."""
    allowed: float | None
    """Epochs that might be spent; `None` where only the time was limited."""
    finetuned: float = 0.0
    """Epochs that the winner was trained on for, after the search; what its candidate tells is from before."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Why moves gave no candidate, and how many did so for that reason."""
    duplicates: int = 0
    """Candidates that were equal to another one and not trained."""
    lost_workers: int = 0
    """Matches that were run again, since the process that ran them died."""
    axis: Axis = "params"
    """What the Pareto front sets the metric against."""
    higher_is_better: bool = True
    """Of the metric."""

    @property
    def trained(self) -> int:
        """How many networks have a score: those that trained to an end, and the start."""
        return sum(candidate.score is not None for candidate in self.candidates)

    def is_winner(self, candidate: Candidate) -> bool:
        """Whether it is the winner, with the weights that won: it may have been on the front before, or after."""
        return candidate.number == self.winner and candidate.epochs == self.candidates[self.winner].epochs

    def ending_with(self, candidate: Candidate) -> "Evolution":
        """The same search, had it chosen this one, as it was then."""
        number = candidate.number
        candidates = (*self.candidates[:number], candidate, *self.candidates[number + 1 :])
        return replace(self, candidates=candidates, winner=number)

    def line(self, number: int) -> tuple[Candidate, ...]:
        """A candidate and its ancestors, the start first."""
        found = [self.candidates[number]]
        while (parent := found[-1].parent) is not None:
            found.append(self.candidates[parent])
        return tuple(reversed(found))

    def changes(self, number: int) -> tuple[Candidate, ...]:
        """Of that line, each network that is another one than its parent."""
        return tuple(c for c in self.line(number) if c.operation not in {START, IDENTITY})

    def done(self, number: int) -> str:
        """What was done to the start, in order: `add-cell, remove-units x2`."""
        runs = ((name, len(list(run))) for name, run in groupby(self.changes(number), lambda c: c.operation))
        return ", ".join(f"{name} x{many}" if many > 1 else name for name, many in runs) or "nothing"


@dataclass(frozen=True, eq=False, repr=False)
class Member:
    """A network on the Pareto front."""

    program: Program
    candidate: Candidate
    score: Score
    """On validation data, of these weights."""

    @override
    def __repr__(self) -> str:
        return f"<Member: metric {self.metric:.4g}, {self.candidate.params:,} parameters, {self.candidate.macs:,} MACs>"

    @property
    def model(self) -> fx.GraphModule:
        """The network: a plain `torch.nn.Module` in eval mode."""
        return self.program.graph_module

    @property
    def metric(self) -> float:
        """On validation data, of these weights."""
        return self.score.metric

    @property
    def cost(self) -> Cost:
        """What it takes."""
        return cost(self.program)

    @property
    def latency_ms(self) -> float | None:
        """For one sample, where it was measured."""
        return self.candidate.latency_ms

    def along(self, axis: Axis) -> float | None:
        """Its cost on one axis; `None` where that was not measured."""
        found: float | None = getattr(self.candidate, axis)
        return found


def as_plain(evolution: Evolution) -> dict[str, Any]:
    """An evolution as plain JSON."""
    candidates = [dict(vars(c)) for c in evolution.candidates]
    return {**vars(evolution), "rejected": dict(evolution.rejected), "candidates": candidates}


def of_plain(plain: Mapping[str, Any]) -> Evolution:
    """What `as_plain` gave, as it was; what a later version added to it is left out.

    Raises:
        KeyError: something is missing.
        TypeError: the same, or something is of another kind.
        ValueError: the numbers make no line of descent.
    """
    candidates = tuple(map(candidate_of_plain, plain["candidates"]))
    for place, candidate in enumerate(candidates):
        if candidate.number != place or (candidate.parent is not None and not 0 <= candidate.parent < place):
            raise ValueError(f"candidate {candidate.number} of parent {candidate.parent} stands at {place}")
    if not 0 <= plain["winner"] < len(candidates):
        raise ValueError(f"there is no candidate {plain['winner']}")
    return Evolution(**{**_known(Evolution, plain), "candidates": candidates})


def candidate_of_plain(plain: Mapping[str, Any]) -> Candidate:
    """A candidate of its values by name.

    Raises:
        TypeError: something is missing, or of another kind.
    """
    scores = tuple((float(epochs), float(metric)) for epochs, metric in plain.get("scores", ()))
    return Candidate(**{**_known(Candidate, plain), "scores": scores})


def member_as_plain(member: Member) -> dict[str, Any]:
    """All of a member but its program, as plain JSON."""
    return {"candidate": dict(vars(member.candidate)), "score": dict(vars(member.score))}


def member_of_plain(plain: Mapping[str, Any], program: Program) -> Member:
    """What `member_as_plain` gave, with its program.

    Raises:
        KeyError: something is missing.
        TypeError: the same, or something is of another kind.
    """
    return Member(program, candidate_of_plain(plain["candidate"]), Score(**plain["score"]))


def _known(kind: type[Candidate | Evolution], plain: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in plain.items() if name in names}
