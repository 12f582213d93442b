"""Reading a file of a run directory whole."""

from pathlib import Path

from fxsurgery.errors import RunError
from fxsurgery.files import writing
from fxsurgery.strict_json import read_regular


def read_whole(path: Path, most: int) -> bytes:
    """Read a regular file, into as much memory as it is large.

    Args:
        path: the file.
        most: the most bytes that it may have.

    Raises:
        RunError: it cannot be read, is not a regular file, or is too large.
    """
    with writing(path):
        size = path.stat().st_size
    try:
        return read_regular(path, max_bytes=min(size, most))
    except MemoryError as error:
        raise RunError(
            f"{path} has {size:,} bytes, more than there is memory for; see whether it is the right file"
        ) from error
