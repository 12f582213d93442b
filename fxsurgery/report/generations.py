"""The generations of an evolutionary search, as tables of operations, and the moves that were rejected."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from fxsurgery.report.formatting import count, enumerated, figure
from fxsurgery.searchers.common.trials import SearchRecord, Status, Trial

OUT_AT_ONCE: frozenset[Status] = frozenset({"eliminated", "duplicate", "failed", "undecided"})
"""Status of trials that did not win within their operation."""


@dataclass(frozen=True)
class Tried:
    """The outcome of one operation in one generation."""

    operation: str
    candidates: str
    best: str
    """Number of its winner; of several or no winners, of the trial with the best score."""
    score: str
    params: str
    outcome: str


@dataclass(frozen=True)
class GenerationRow:
    """One generation."""

    number: int
    parents: str
    many: int
    """Number of candidates."""
    tried: tuple[Tried, ...]


def generations(record: SearchRecord) -> tuple[GenerationRow, ...]:
    """Return all generations except that of the start."""
    later = sorted((c for c in record.trials if c.generation), key=lambda c: c.generation)
    return tuple(_generation(number, list(born), record) for number, born in groupby(later, lambda c: c.generation))


def refusals(record: SearchRecord) -> tuple[tuple[str, str], ...]:
    """Return the reasons for rejected moves with their counts, the most frequent first."""
    found = sorted(record.rejected.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple((reason, count(many)) for reason, many in found)


def mishaps(record: SearchRecord) -> tuple[str, ...]:
    """Return sentences on duplicates and lost workers."""
    parts = list[str]()
    if many := record.duplicates:
        were = "candidates were" if many > 1 else "candidate was"
        parts.append(f"{count(many)} {were} equal to another one and not trained.")
    if many := record.lost_workers:
        lost = "matches were run again, since their workers" if many > 1 else "match was run again, since its worker"
        parts.append(f"{count(many)} {lost} died.")
    return tuple(parts)


def _generation(number: int, born: Sequence[Trial], record: SearchRecord) -> GenerationRow:
    parents = sorted({c.parent for c in born if c.parent is not None})
    names = [f"{parent} ({record.trials[parent].operation})" for parent in parents]
    kinds = dict.fromkeys(c.operation for c in born)
    tried = tuple(_tried(kind, [c for c in born if c.operation == kind], record) for kind in kinds)
    return GenerationRow(number, f"parent{'s' if len(names) > 1 else ''} {enumerated(names)}", len(born), tried)


def _tried(operation: str, born: Sequence[Trial], record: SearchRecord) -> Tried:
    best = max(born, key=lambda c: _worth(c, record))
    return Tried(
        operation=operation,
        candidates=count(len(born)),
        best=str(best.number),
        score=figure(math.nan if best.score is None else best.score),
        params=count(best.costs["params"]),
        outcome=best.reason,
    )


def _worth(trial: Trial, record: SearchRecord) -> tuple[bool, float]:
    score = trial.score
    if score is None or math.isnan(score):
        return (False, -math.inf)
    return (trial.status not in OUT_AT_ONCE, score if record.higher_is_better else -score)
