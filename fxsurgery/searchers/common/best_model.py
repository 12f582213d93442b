"""Write the best model so far into a run directory, or explain why it cannot be written."""

import tempfile
from pathlib import Path

from fxsurgery.errors import SavingError
from fxsurgery.files import writing
from fxsurgery.program import Program
from fxsurgery.runs.layout import BEST, RESULT, STAGES
from fxsurgery.saving import save_program
from fxsurgery.training.rank_zero import from_rank_zero


def unwritable(program: Program, folder: Path) -> str | None:
    """Return a warning if the model cannot be written into `folder`, by writing it there once; `None` if it can."""

    def attempt() -> str | None:
        with writing(folder), tempfile.TemporaryDirectory(prefix=f".{BEST}.", dir=folder) as trial:
            return keep_best(program, Path(trial))

    return from_rank_zero(attempt)


def unwritten(error: SavingError) -> str:
    """Return the message for a model that cannot be written."""
    return (
        f"the run directory gets no {BEST} and no {RESULT} folder, since the model cannot be written: {error}. "
        f"Its weights are in {STAGES}: keep result.model yourself"
    )


def keep_best(program: Program, folder: Path) -> str | None:
    """Write a program as the best one of the run directory `folder`; return a message if it cannot be written.

    A failed write is not an error, so that trained weights are not lost to it.
    """
    try:
        save_program(program, folder / BEST)
    except SavingError as error:
        return unwritten(error)
    return None
