"""The best model so far in a run directory, and what to tell a user whose model cannot be written there."""

import tempfile
from pathlib import Path

from fxsurgery.errors import SavingError
from fxsurgery.files import writing
from fxsurgery.program import Program
from fxsurgery.runs.layout import BEST, RESULT, STAGES
from fxsurgery.saving import save_program
from fxsurgery.training.rank_zero import from_rank_zero


def unwritable(program: Program, folder: Path) -> str | None:
    """What to tell a user before a long run whose end cannot be written into `folder`; found out by writing it."""

    def tried() -> str | None:
        with writing(folder), tempfile.TemporaryDirectory(prefix=f".{BEST}.", dir=folder) as trial:
            return keep_best(program, Path(trial))

    return from_rank_zero(tried)


def unwritten(error: SavingError) -> str:
    """What to tell a user of a model that cannot be written."""
    return (
        f"the run directory gets no {BEST} and no {RESULT} folder, since the model cannot be written: {error}. "
        f"Its weights are in {STAGES}: keep result.model yourself"
    )


def keep_best(program: Program, folder: Path) -> str | None:
    """Write a program as the best one of the run directory `folder`; return why not if it cannot be written.

    What was trained is worth more than its file, so that is no error.
    """
    try:
        save_program(program, folder / BEST)
    except SavingError as error:
        return unwritten(error)
    return None
