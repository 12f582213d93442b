"""Atomic file writes: a file is written completely or not at all, however the process ends."""

import errno
import os
import pickle
import struct
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxsurgery.errors import RunError, reason_of

_ADVICE = {
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some of your quota there",
    errno.EROFS: "the file system is read-only: choose another directory",
    errno.EACCES: "choose a directory that you may write to",
    errno.ENOENT: "check the path",
    errno.EEXIST: "a file of this name exists: choose another directory",
    errno.ENOTDIR: "a part of the path is a file: choose another directory",
    errno.EPERM: "choose a directory that you may write to",
}


NO_TENSORS = (
    pickle.UnpicklingError, struct.error, RuntimeError, ValueError, TypeError, LookupError, AttributeError, EOFError,
    AssertionError, OverflowError,
)  # fmt: skip
"""Errors that `torch.load(weights_only=True)` raises for a corrupt file, found by changing bytes."""


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` about `path` into a `RunError`.

    Raises:
        RunError: it cannot be written or read; it says why and what to do.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "correct that first")
        raise RunError(
            f"{path}: {error.strerror or reason_of(error)}; {advice}; existing files are unchanged"
        ) from error


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, flush it to the disk, and rename it.

    Raises:
        RunError: the system refuses; a file that was there stays as it was.
    """
    require_plain(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        settle(path.parent)


def require_plain(path: Path) -> None:
    """Refuse to replace a folder, a device or a pipe by a file.

    Raises:
        RunError: one of these stands there.
    """
    if path.exists() and not path.is_file():
        raise RunError(f"{path} is not a regular file; choose another path, nothing there was changed")


def _umask() -> int:
    """Return the umask of the process, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def settle(folder: Path) -> None:
    """Flush the entries of a folder to the disk if the system supports it."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
