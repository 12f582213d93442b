"""Read whole files of a run directory, of bounded size."""

from pathlib import Path

from fxsurgery.errors import RunError
from fxsurgery.files import writing
from fxsurgery.strict_json import read_regular


def read_whole(path: Path, max_bytes: int) -> bytes:
    """Read a regular file whole.

    Args:
        path: the file.
        max_bytes: the largest size that is read.

    Raises:
        RunError: the file cannot be read, is not a regular file, or is too large.
    """
    with writing(path):
        size = path.stat().st_size
    try:
        return read_regular(path, max_bytes=min(size, max_bytes))
    except MemoryError as error:
        raise RunError(
            f"{path} has {size:,} bytes, more than the memory holds; check that it is the right file"
        ) from error
