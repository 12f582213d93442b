"""The trials of one generation in the run's journal: written as they are made, read back by a resumed run.

So a resumed run knows which moves gave a trial, which gave none and why, and which trials are duplicates, without
trying the moves again. It rebuilds only the trials that train.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import GenericAlias
from typing import Any

from pydantic import ValidationError

from fxsurgery.runs.run_directory import RunDir
from fxsurgery.saving.facts import schema_of
from fxsurgery.searchers.common.trials import Trial, require_descent, trial_from_plain, trial_to_plain

_LATER = ("epochs", "score", "scores")
"""Fields of a trial that are known only after it has trained."""
_BORN = schema_of(Trial, **dict.fromkeys(_LATER))
"""A trial as plain JSON before it has trained."""


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The trials of one generation before any of them has trained, and the moves that gave none."""

    trials: tuple[Trial, ...]
    hashes: tuple[str, ...]
    """Structural hash of each trial, in order: equal for duplicates."""
    rejected: Mapping[str, int] = field(default_factory=Counter)
    """Number of rejected moves, by reason."""
    crashes: tuple[str, ...] = ()
    """Messages of passes that crashed."""


_SAVED = schema_of(
    Generation, trials=GenericAlias(list, (_BORN,)), hashes=list[str], rejected=dict[str, int], crashes=list[str]
)
"""A generation as plain JSON."""


def recall_generation(
    run: RunDir, number: int, parents: list[int], first: int, make: Callable[[], Generation]
) -> Generation:
    """Return the trials of a generation: made now, or recalled from the journal of a resumed run.

    Args:
        run: the run directory with the journal.
        number: number of the generation.
        parents: numbers of the trials that its trials may be made of.
        first: number of the first trial of the generation.
        make: makes the trials.

    Raises:
        RunError: the journal records something else at this point, or trials that do not fit.
    """

    def is_generation(plain: object) -> bool:
        try:
            _SAVED.model_validate(plain)
            found = _from_plain(plain)
            require_descent(found.trials, first)
        except (ValidationError, ValueError):
            return False
        known = [trial for trial in found.trials if trial.parent in parents and trial.generation == number]
        return len(known) == len(found.trials) == len(found.hashes)

    return _from_plain(run.recall(f"trials of generation {number}", lambda: _to_plain(make()), is_generation))


def _to_plain(generation: Generation) -> dict[str, Any]:
    trials = [trial_to_plain(trial) for trial in generation.trials]
    return {
        "trials": [{name: value for name, value in trial.items() if name not in _LATER} for trial in trials],
        "hashes": list(generation.hashes),
        "rejected": dict(generation.rejected),
        "crashes": list(generation.crashes),
    }


def _from_plain(plain: Any) -> Generation:  # noqa: ANN401 -- JSON
    return Generation(
        trials=tuple(map(trial_from_plain, plain["trials"])),
        hashes=tuple(plain["hashes"]),
        rejected=plain["rejected"],
        crashes=tuple(plain["crashes"]),
    )
