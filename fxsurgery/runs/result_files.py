"""Checksums of the files of a result, to find those that were changed or removed."""

import hashlib
import os
import shutil
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from fxsurgery.files import writing


def checksums(root: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of every file under `names`, by path relative to `root`.

    Raises:
        RunError: a file cannot be read.
    """
    found = sorted(path for name in names for path in _files(root / name))
    return {path.relative_to(root).as_posix(): _checksum(path) for path in found}


def changed(root: Path, known: Mapping[str, str]) -> str | None:
    """Return the first file that is missing or changed since `checksums`; `None` if all are intact."""
    return next((name for name, checksum in known.items() if _checksum(root / name) != checksum), None)


def clear_away(root: Path, name: str, known: Iterable[str]) -> None:
    """Remove a directory if it holds known files only.

    Raises:
        RunError: the directory cannot be removed.
    """
    folder, paths = root / name, {root / one for one in known}
    if folder.is_dir() and not folder.is_symlink() and paths >= set(_files(folder)):
        with writing(folder):
            shutil.rmtree(folder)


def _files(path: Path) -> list[Path]:
    """Return every path at and below `path` that is not a directory."""
    if path.is_dir() and not path.is_symlink():
        return [file for part in path.iterdir() for file in _files(part)]
    return [path] if os.path.lexists(path) else []


def _checksum(path: Path) -> str:
    """Return the SHA-256 of a file, or an empty string if it is missing or not a regular file."""
    if not os.path.lexists(path):
        return ""
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb", buffering=0) as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return ""
            return hashlib.file_digest(file, "sha256").hexdigest()
