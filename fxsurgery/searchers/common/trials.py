"""The record of a search that trains many networks: every trial with its parent, move, scores, costs and status.

One neutral record for all such methods. The journal keeps the trials of each generation as they are made, and a resumed
run reads them back; the Pareto front, the report and its lineage chart read the same record.

A network follows from its trial: the moves along its line of descent, applied to the start in order, rebuild it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from typing import Any, Literal, TypeAlias

from typing_extensions import override

from fxsurgery.budget import Metric
from fxsurgery.printable import printable

START, IDENTITY = "start", "identity"
"""Operations that change nothing."""

Status: TypeAlias = Literal[
    "undecided", "eliminated", "outranked", "duplicate", "failed", "parent", "winner",
]  # fmt: skip
"""The outcome of a trial.

- `undecided`: the search ended before it was compared, or it is still competing.
- `eliminated`: it lost to another trial of the same operation.
- `outranked`: it was the best of its operation and lost to the best of another one.
- `duplicate`: it equals another trial and was not trained.
- `failed`: its training diverged.
- `parent`: it is or was one of the networks from which the next ones are made.
- `winner`: the search chose it.
"""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One network of a search, the start being number 0. Plain values only.

    Example:
        >>> start = Trial(number=0, parent=None, generation=0, operation="start", costs={"params": 40, "macs": 900})
        >>> start.cost("macs"), start.cost("latency_ms"), start.reason
        (900, None, 'not decided')
    """

    number: int
    parent: int | None
    """Number of the trial that it was made from; `None` for the start."""
    generation: int
    """0 for the start."""
    operation: str
    """`start`, `identity`, or what was done to the parent: `add-cell`, `remove-units`, ..."""
    move: str = ""
    """The pass that was applied, as text; empty for the start and the identity."""
    costs: Mapping[Metric, float] = field(default_factory=dict)
    """Costs by metric; parameters and MACs are always known."""
    epochs: float = 0.0
    """Number of epochs trained, including those of its ancestors."""
    score: float | None = None
    """The validation metric, averaged over the last epochs; `None` if it never finished a training."""
    scores: tuple[tuple[float, float], ...] = ()
    """Pairs of epochs trained (including those of its ancestors) and validation metric, one per epoch of its own."""
    status: Status = "undecided"
    reason: str = "not decided"
    """The status in words: `lost in competition 1`, `duplicate of 5`, `diverged: the loss is nan at step 12`, ..."""

    @override
    def __repr__(self) -> str:
        score = "no score" if self.score is None else f"score {self.score:.4g}"
        params = f"{self.costs['params']:,} parameters, " if "params" in self.costs else ""
        return printable(f"<Trial {self.number}: {self.operation}, {params}{score}, {self.status}>")

    def cost(self, metric: Metric) -> float | None:
        """Return its cost in one metric; `None` if that is not known."""
        return self.costs.get(metric)


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """A whole search. Plain values only."""

    trials: tuple[Trial, ...]
    """The trials, in the order of their numbers."""
    winner: int
    spent: float
    """Epochs of all trials, including warm-up and fine-tuning, excluding matches stopped by the time limit."""
    allowed: float | None
    """Number of epochs allowed; `None` if only the time was limited."""
    finetuned: float = 0.0
    """Epochs of fine-tuning of the winner after the search; its trial does not include them."""
    rejected: Mapping[str, int] = field(default_factory=dict)
    """Number of moves that gave no trial, by reason."""
    duplicates: int = 0
    """Number of trials that equal another one and were not trained."""
    lost_workers: int = 0
    """Number of trainings that were run again because their process died."""
    axis: Metric = "params"
    """The cost that the Pareto front trades off against the validation metric."""
    higher_is_better: bool = True
    """Whether a higher validation metric is better."""

    @override
    def __repr__(self) -> str:
        of = "" if self.allowed is None else f" of {self.allowed:g}"
        return f"<SearchRecord: {len(self.trials)} trials, winner {self.winner}, {self.spent:g}{of} epochs spent>"

    @property
    def trained(self) -> int:
        """Number of trials with a score: those that finished a training, and the start."""
        return sum(trial.score is not None for trial in self.trials)

    def is_winner(self, trial: Trial) -> bool:
        """Return True for the winner at the weights that won; the front may hold it at earlier or later weights."""
        return trial.number == self.winner and trial.epochs == self.trials[self.winner].epochs

    def ending_with(self, trial: Trial) -> "SearchRecord":
        """Return the record of the same search with `trial` as its winner."""
        number = trial.number
        trials = (*self.trials[:number], trial, *self.trials[number + 1 :])
        return replace(self, trials=trials, winner=number)

    def line(self, number: int) -> tuple[Trial, ...]:
        """Return a trial and its ancestors, the start first."""
        line = [self.trials[number]]
        while (parent := line[-1].parent) is not None:
            line.append(self.trials[parent])
        return tuple(reversed(line))

    def changes(self, number: int) -> tuple[Trial, ...]:
        """Return the trials of that line that differ from their parent."""
        return tuple(t for t in self.line(number) if t.operation not in {START, IDENTITY})

    def done(self, number: int) -> str:
        """Return the operations applied to the start, in order, such as `add-cell, remove-units x2`.

        Without any, return `trained further`, or `the start` for the start itself.
        """
        runs = ((name, len(list(run))) for name, run in groupby(self.changes(number), lambda t: t.operation))
        return ", ".join(f"{name} x{count}" if count > 1 else name for name, count in runs) or (
            "the start" if self.trials[number].parent is None else "trained further"
        )


def to_plain(record: SearchRecord) -> dict[str, Any]:
    """Return a record as plain JSON."""
    trials = [trial_to_plain(trial) for trial in record.trials]
    return {**vars(record), "rejected": dict(record.rejected), "trials": trials}


def from_plain(plain: Mapping[str, Any]) -> SearchRecord:
    """Return the record that `to_plain` wrote; unknown keys, of a later version, are ignored.

    Raises:
        KeyError: something is missing.
        TypeError: something is missing or of another type.
        ValueError: the numbers of trials and parents are inconsistent.
    """
    trials = tuple(map(trial_from_plain, plain["trials"]))
    require_descent(trials)
    if not 0 <= plain["winner"] < len(trials):
        raise ValueError(f"there is no trial {plain['winner']}")
    return SearchRecord(**{**_known(SearchRecord, plain), "trials": trials})


def trial_to_plain(trial: Trial) -> dict[str, Any]:
    """Return a trial as plain JSON."""
    return {**vars(trial), "costs": dict(trial.costs)}


def trial_from_plain(plain: Mapping[str, Any]) -> Trial:
    """Return the trial that `trial_to_plain` wrote.

    Raises:
        TypeError: something is missing or of another type.
        ValueError: its parameters or MACs are missing.
    """
    scores = tuple((float(epochs), float(metric)) for epochs, metric in plain.get("scores", ()))
    trial = Trial(**{**_known(Trial, plain), "costs": dict(plain.get("costs", {})), "scores": scores})
    if missing := {"params", "macs"} - trial.costs.keys():
        raise ValueError(f"trial {trial.number} has no {', '.join(sorted(missing))} among its costs")
    return trial


def require_descent(trials: tuple[Trial, ...], first: int = 0) -> None:
    """Refuse trials whose numbers do not count up from `first`, or whose parents do not precede them.

    Raises:
        ValueError: it names the trial.
    """
    for place, trial in enumerate(trials, first):
        if trial.number != place or (trial.parent is not None and not 0 <= trial.parent < place):
            raise ValueError(f"trial {trial.number} of parent {trial.parent} is at position {place}")


def _known(kind: type[Trial | SearchRecord], plain: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(kind)}
    return {name: value for name, value in plain.items() if name in names}
