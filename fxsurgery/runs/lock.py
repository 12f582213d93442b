"""One run at a time works in a run directory: what two wrote in turns would be neither's.

Two locks hold it. The system's keeps other processes out for as long as this one lives, so that a killed run leaves
none behind; unlike that of `flock`, it is not handed to the workers of a data loader, which may outlive the run by some
seconds. But it is the whole process's: it lets in other threads, and is gone as soon as any of them closes the file. So
a table of this process keeps these out, before they touch the file.
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
"""What a file system says that knows no locks."""
_TAKEN = {errno.EACCES, errno.EAGAIN}
_REMEDY = "let it end, or start in another directory"


@dataclass(frozen=True, eq=False)
class _Holder:
    """Who works in a folder."""

    lock: "weakref.ref[Lock]"
    process: int
    """A fork has the table of its parent, but not its locks."""
    thread: int


_holders = dict[tuple[int, int], _Holder]()
"""By device and inode of the folder, whatever its path."""
_table = threading.Lock()


class Lock:
    """Of a folder, taken when this is made. Where the system knows no such lock, other processes are not kept out."""

    def __init__(self, folder: Path) -> None:
        """Take it.

        A lock that the same thread took and never began to work under is given up for this one: its run failed before
        it began, and an error that is kept somewhere keeps it.

        Raises:
            RunError: another run has it, in this process or in another, or the folder cannot be written to.
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
        """Let go of it; once is enough."""
        # The file first: while this lock is in the table, no other of this process can hold the file.
        self.close()
        with _table:
            holder = _holders.get(self._key)
            if holder is not None and holder.lock() is self:
                del _holders[self._key]

    def close(self) -> None:
        """Let other processes in."""
        if self._close is not None:
            self._close()

    def _enter(self, folder: Path) -> None:
        """Put this lock into the table."""
        with _table:
            holder = _holders.get(self._key)
            before = None if holder is None or holder.process != os.getpid() else holder.lock()
            if holder is not None and before is not None:
                if before.working or holder.thread != threading.get_ident():
                    raise RunError(f"{folder}: another run of this process is at work there; {_REMEDY}")
                before.close()
            _holders[self._key] = _Holder(weakref.ref(self), os.getpid(), threading.get_ident())


def _locked(folder: Path) -> int:
    """The lock file, opened, and locked against other processes.

    Raises:
        RunError: another process has it, or something else stands in its place.
    """
    path = folder / FILE
    if os.path.lexists(path) and not path.is_file():
        raise RunError(f"{path} is not a regular file; remove it, or start in another directory")
    # A pipe that takes its place in between is opened without waiting for its other end.
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
        raise RunError(f"{folder}: another process is at work there; {_REMEDY}") from error
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
