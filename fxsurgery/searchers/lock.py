"""One process at a time is at a run directory: what two wrote in turns would be neither's.

The system holds the lock for as long as the process lives, so that a killed run leaves none behind; unlike that of
`flock`, this one is not handed to the workers of a data loader, which may outlive it by some seconds.
"""

import errno
import os
import sys
import weakref
from pathlib import Path

from fxsurgery.errors import RunError
from fxsurgery.files import writing

FILE = ".lock"
_UNKNOWN = {errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS}
"""What a file system says that knows no locks."""
_TAKEN = {errno.EACCES, errno.EAGAIN}


class Lock:
    """Of a folder, taken when this is made. Where the system knows no such lock, nothing is held."""

    def __init__(self, folder: Path) -> None:
        """Take it.

        Raises:
            RunError: another process has it, or the folder cannot be written to.
        """
        with writing(folder):
            descriptor = os.open(folder / FILE, os.O_RDWR | os.O_CREAT, 0o666)
            self._close = weakref.finalize(self, os.close, descriptor)
            try:
                _take(descriptor)
            except OSError as error:
                if error.errno in _UNKNOWN:
                    return
                self.release()
                if error.errno not in _TAKEN:
                    raise
                raise RunError(f"{folder}: another process is at work there; let it end, or begin elsewhere") from error

    def release(self) -> None:
        """Let go of it; once is enough."""
        self._close()


def _take(descriptor: int) -> None:
    if sys.platform == "win32":
        return
    import fcntl  # noqa: PLC0415 -- POSIX has it

    fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
