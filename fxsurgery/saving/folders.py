"""Folders that are there whole or not at all, and never in the place of something else."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fxsurgery.errors import RunError, typed_reason
from fxsurgery.files import settle, writing

_SIGN_WITHIN = 2**16
"""Bytes at the beginning of a file of ours that show whose it is."""


@contextmanager
def new_folder(path: Path, ours: Sequence[str], sign: str) -> Iterator[Path]:
    """A folder to write into that takes the place of `path` once all is written.

    Args:
        path: where it goes.
        ours: the names that a folder may hold which is replaced; the first must be there.
        sign: what the first of them says somewhere, if it is of ours.

    Raises:
        RunError: the system refuses, or `path` holds something else.
    """
    with writing(path):
        if path.exists() and (stray := _stray(path, ours, sign)):
            raise RunError(f"{path} holds something else ({stray}): give an empty folder, or a new one")
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield fresh
        with writing(path):
            fresh.chmod(0o755)
            _swap(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _stray(path: Path, ours: Sequence[str], sign: str) -> str:
    """What keeps `path` from being replaced: the name of something in it that was not written here."""
    if not path.is_dir():
        return path.name
    there = {part.name for part in path.iterdir()}
    if stray := sorted(there - {*ours, "__pycache__"}):
        return stray[0]
    first = path / ours[0]
    is_ours = first.is_file() and sign in _beginning(first)
    return "" if is_ours or not there else min(there)


def _beginning(path: Path) -> str:
    """The first part of a text, however large the file is."""
    with path.open("rb") as file:
        return file.read(_SIGN_WITHIN).decode(errors="replace")


def _swap(fresh: Path, path: Path) -> None:
    """Put `fresh` in the place of `path`. What was there is moved away first, and back if that fails."""
    settle(fresh)
    if not path.exists():
        fresh.rename(path)
    else:
        old = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent)) / "old"
        path.rename(old)
        try:
            fresh.rename(path)
        except OSError:
            old.rename(path)
            raise
        finally:
            shutil.rmtree(old.parent, ignore_errors=True)
    settle(path.parent)


_DAMAGES = (
    LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RuntimeError, SyntaxError,
)  # fmt: skip
"""What Python and torch raise on a graph that somebody changed."""
DAMAGED = "damaged: "
"""What an error begins with that does not know the folder."""


@contextmanager
def damage(folder: Path) -> Iterator[None]:
    """Turn what goes wrong with a file that somebody changed into an error of ours."""
    try:
        yield
    except RunError as error:
        if not str(error).startswith(DAMAGED):
            raise
        raise RunError(f"{folder} is {error}; restore an intact copy, or save it again") from error
    except _DAMAGES as error:
        raise RunError(
            f"{folder} is damaged: {typed_reason(error)[:400]}; restore an intact copy, or save it again"
        ) from error
