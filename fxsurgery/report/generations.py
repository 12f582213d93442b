"""The generations of an evolution, each as a table of what was tried, and the moves that came to nothing."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from fxsurgery.report.formatting import count, enumerated, figure
from fxsurgery.searchers.common.evolution import Candidate, Evolution

OUT_AT_ONCE = ("lost in competition 1", "duplicate of ", "diverged", "not decided")
"""How the fate of what did not win within its operation begins."""


@dataclass(frozen=True)
class Tried:
    """What one operation came to in one generation."""

    operation: str
    candidates: str
    best: str
    """Its winner, by number; of several that are left, or where none is, the one that scored best."""
    score: str
    params: str
    fate: str


@dataclass(frozen=True)
class Generation:
    """One of them."""

    number: int
    parents: str
    many: int
    """Candidates."""
    tried: tuple[Tried, ...]


def generations(evolution: Evolution) -> tuple[Generation, ...]:
    """All but that of the start."""
    later = sorted((c for c in evolution.candidates if c.generation), key=lambda c: c.generation)
    return tuple(_generation(number, list(born), evolution) for number, born in groupby(later, lambda c: c.generation))


def refusals(evolution: Evolution) -> tuple[tuple[str, str], ...]:
    """Why moves gave no candidate, and how often, the most frequent first."""
    found = sorted(evolution.rejected.items(), key=lambda pair: (-pair[1], pair[0]))
    return tuple((reason, count(many)) for reason, many in found)


def mishaps(evolution: Evolution) -> tuple[str, ...]:
    """What there is to say of duplicates and of lost workers."""
    parts = list[str]()
    if many := evolution.duplicates:
        were = "candidates were" if many > 1 else "candidate was"
        parts.append(f"{count(many)} {were} equal to another one and not trained.")
    if many := evolution.lost_workers:
        lost = "matches were run again, since their workers" if many > 1 else "match was run again, since its worker"
        parts.append(f"{count(many)} {lost} died.")
    return tuple(parts)


def _generation(number: int, born: Sequence[Candidate], evolution: Evolution) -> Generation:
    parents = sorted({c.parent for c in born if c.parent is not None})
    names = [f"{parent} ({evolution.candidates[parent].operation})" for parent in parents]
    kinds = dict.fromkeys(c.operation for c in born)
    tried = tuple(_tried(kind, [c for c in born if c.operation == kind], evolution) for kind in kinds)
    return Generation(number, f"parent{'s' if len(names) > 1 else ''} {enumerated(names)}", len(born), tried)


def _tried(operation: str, born: Sequence[Candidate], evolution: Evolution) -> Tried:
    best = max(born, key=lambda c: _worth(c, evolution))
    return Tried(
        operation=operation,
        candidates=count(len(born)),
        best=str(best.number),
        score=figure(math.nan if best.score is None else best.score),
        params=count(best.params),
        fate=best.fate,
    )


def _worth(candidate: Candidate, evolution: Evolution) -> tuple[bool, float]:
    score = candidate.score
    if score is None or math.isnan(score):
        return (False, -math.inf)
    return (not candidate.fate.startswith(OUT_AT_ONCE), score if evolution.higher_is_better else -score)
