"""Atomic creation and replacement of folders, which never overwrites foreign files."""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fxsurgery.errors import RunError, typed_reason
from fxsurgery.files import settle, writing

_MARKER_WITHIN = 2**16
"""Number of bytes at the start of a file in which its marker must appear."""


@contextmanager
def new_folder(path: Path, owned: Sequence[str], marker: str) -> Iterator[Path]:
    """Context manager that yields a new folder and moves it to `path` once everything is written.

    Args:
        path: the target.
        owned: names that a folder to be replaced may contain; the first one must exist.
        marker: text near the start of the first owned file that identifies it as written by fxsurgery.

    Raises:
        RunError: the system denies access, or `path` holds something else.
    """
    with writing(path):
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, and a folder is written there; give an empty or a new folder")
        if path.exists() and (stray := _stray(path, owned, marker)):
            raise RunError(f"{path} contains other files ({stray}); give an empty or a new folder")
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield fresh
        with writing(path):
            fresh.chmod(0o755)
            _swap(fresh, path)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _stray(path: Path, owned: Sequence[str], marker: str) -> str:
    """Return the name of an entry that forbids replacing `path`; empty if it may be replaced."""
    existing = {part.name for part in path.iterdir()}
    if stray := sorted(existing - {*owned, "__pycache__"}):
        return stray[0]
    first = path / owned[0]
    is_owned = first.is_file() and marker in _beginning(first)
    return "" if is_owned or not existing else min(existing)


def _beginning(path: Path) -> str:
    """Return the start of a text file, however large it is."""
    with path.open("rb") as file:
        return file.read(_MARKER_WITHIN).decode(errors="replace")


def _swap(fresh: Path, path: Path) -> None:
    """Move `fresh` to `path`. An existing folder is moved away first, and back if that fails."""
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


_DAMAGE_ERRORS = (
    LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RuntimeError, SyntaxError,
)  # fmt: skip
"""Exceptions that Python and torch raise on a graph from a modified file."""
DAMAGED = "damaged: "
"""Prefix of an error that does not know the folder yet."""


@contextmanager
def damage_reported(folder: Path) -> Iterator[None]:
    """Context manager that turns errors caused by a damaged or modified folder into a `RunError` that names it."""
    try:
        yield
    except RunError as error:
        if not str(error).startswith(DAMAGED):
            raise
        raise RunError(f"{folder} is {error}; restore an intact copy, or save it again") from error
    except _DAMAGE_ERRORS as error:
        raise RunError(
            f"{folder} is damaged: {typed_reason(error)[:400]}; restore an intact copy, or save it again"
        ) from error
