"""Locks that let one run at a time work in a run directory.

There are two locks. That of the operating system excludes other processes for as long as this one lives, so a killed
run leaves none behind. Unlike that of `flock`, workers of a data loader, which may outlive the run by some seconds, do
not inherit it. But it belongs to the whole process: other threads pass it, and it is released as soon as any of them
closes the file. So a table in this process excludes other threads before they touch the file.
"""

import errno
import os
import stat
import sys
import threading
import weakref
from dataclasses import dataclass
from pathlib import Path

from fxsurgery.errors import RunError
from fxsurgery.files import writing

FILE = ".lock"
_UNKNOWN = {errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
"""Error codes of file systems without locks."""
_TAKEN = {errno.EACCES, errno.EAGAIN}
_REMEDY = "wait until it ends, or start in another directory"


@dataclass(frozen=True, eq=False)
class _Holder:
    """The run that works in a directory."""

    lock: "weakref.ref[Lock]"
    process: int
    """Id of the process: a fork inherits the table of its parent, but not its locks."""
    thread: int


_holders = dict[tuple[int, int], _Holder]()
"""Holders by device and inode of the directory, whatever its path."""
_table = threading.Lock()


class Lock:
    """A lock on a directory, taken on construction. It excludes other processes only if the file system has locks."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        A lock of the same thread under which no work began is released first: its run failed early, and a stored
        exception keeps it alive.

        Raises:
            RunError: another run has the lock, in this process or in another, or the directory is not writable.
        """
        self.working = False
        self._close: weakref.finalize[[int], Lock] | None = None
        with writing(folder):
            there = folder.stat()
        self._key = (there.st_dev, there.st_ino)
        self._enter(folder)
        try:
            with writing(folder / FILE):
                self._close = weakref.finalize(self, os.close, _locked(folder))
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Release the lock; further calls do nothing."""
        # Close the file first: while this lock is in the table, no other lock of this process can hold the file.
        self.close()
        with _table:
            holder = _holders.get(self._key)
            if holder is not None and holder.lock() is self:
                del _holders[self._key]

    def close(self) -> None:
        """Release the lock of the operating system, which excludes other processes."""
        if self._close is not None:
            self._close()

    def _enter(self, folder: Path) -> None:
        """Enter this lock into the table of the process."""
        with _table:
            holder = _holders.get(self._key)
            before = None if holder is None or holder.process != os.getpid() else holder.lock()
            if holder is not None and before is not None:
                if before.working or holder.thread != threading.get_ident():
                    raise RunError(f"{folder}: another run of this process is working there; {_REMEDY}")
                before.close()
            _holders[self._key] = _Holder(weakref.ref(self), os.getpid(), threading.get_ident())


def _locked(folder: Path) -> int:
    """Open the lock file and lock it against other processes.

    Raises:
        RunError: another process has the lock, or the path is not a regular file.
    """
    path = folder / FILE
    if os.path.lexists(path) and not path.is_file():
        raise RunError(f"{path} is not a regular file; remove it, or start in another directory")
    # Opening a pipe that replaced the file meanwhile must not wait for its other end.
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        _require_regular(descriptor, path)
        _take(descriptor)
    except OSError as error:
        if error.errno in _UNKNOWN:
            return descriptor
        os.close(descriptor)
        if error.errno not in _TAKEN:
            raise
        raise RunError(f"{folder}: another process is working there; {_REMEDY}") from error
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(descriptor: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise RunError(f"{path} is not a regular file; remove it, or start in another directory")


def _take(descriptor: int) -> None:
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415 -- POSIX has it

    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
