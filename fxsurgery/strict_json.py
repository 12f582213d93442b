"""Strict reading of untrusted files: regular files of bounded size, and JSON in them.

Strict JSON is UTF-8, has no key twice in one object, nests no deeper than the caller allows, holds no lone surrogate,
and only finite numbers unless the caller allows others. Every fault is raised as one error of this package.
"""

import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from fxsurgery.errors import RunError, SurgeryError, reason_of
from fxsurgery.files import writing

_STRING = re.compile(r'"[^"\\]*+(?:\\.[^"\\]*+)*+(?:"|\\?\Z)', re.DOTALL)
_NO_BRACKET = re.compile(r"[^\[\]{}]+")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_regular(path: Path, *, max_bytes: int, error: type[SurgeryError] = RunError) -> bytes:
    """Read a whole regular file.

    Args:
        path: the file. A link to a regular file is one.
        max_bytes: the most bytes that it may have.
        error: the type to raise where the file is not regular, or too large.

    Raises:
        RunError: the system cannot read it.
    """
    with writing(path):
        require_regular(path, error=error)
        # A pipe that takes the place of the file in between is opened without waiting, and refused.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise error(f"{path} is not a regular file; put back the file that was written there")
            content = file.read(max_bytes + 1) if found.st_size <= max_bytes else b""
    if found.st_size > max_bytes or len(content) > max_bytes:
        raise error(
            f"{path} is larger than {max_bytes:,} bytes, the most that is read; restore the file that was written there"
        )
    return content


def require_regular(path: Path, *, error: type[SurgeryError] = RunError) -> None:
    """Refuse a folder, a pipe, a socket or a device.

    Raises:
        FileNotFoundError: nothing is there.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise error(f"{path} is not a regular file; put back the file that was written there")


def read_json(
    path: Path,
    *,
    max_bytes: int,
    max_depth: int = 64,
    allow_nan: bool = False,
    error: type[SurgeryError] = RunError,
) -> Any:  # noqa: ANN401 -- any JSON
    """Read the JSON of a regular file.

    Args:
        path: the file.
        max_bytes: the most bytes that it may have.
        max_depth: how deep arrays and objects may nest.
        allow_nan: whether `NaN` and `Infinity` are numbers.
        error: the type to raise where the content is refused.

    Raises:
        RunError: the system cannot read the file.
    """
    content = read_regular(path, max_bytes=max_bytes, error=error)
    return parse_json(content, where=str(path), max_depth=max_depth, allow_nan=allow_nan, error=error)


def parse_json(
    content: bytes,
    *,
    where: str,
    max_depth: int = 64,
    allow_nan: bool = False,
    error: type[SurgeryError] = RunError,
) -> Any:  # noqa: ANN401 -- any JSON
    """Parse the JSON of a file strictly.

    Args:
        content: UTF-8.
        where: what the error calls the content, such as `DIR/config.json`.
        max_depth: how deep arrays and objects may nest.
        allow_nan: whether `NaN` and `Infinity` are numbers.
        error: the type to raise where the content is refused.
    """
    try:
        return strict_loads(content, max_depth=max_depth, allow_nan=allow_nan)
    except (ValueError, RecursionError) as problem:
        raise error(f"{where} is damaged: {reason_of(problem)}; restore an intact copy") from problem


def strict_loads(content: bytes, *, max_depth: int = 64, allow_nan: bool = False) -> Any:  # noqa: ANN401 -- any JSON
    """Parse JSON, and refuse ambiguous or too deeply nested JSON.

    Args:
        content: UTF-8.
        max_depth: how deep arrays and objects may nest.
        allow_nan: whether `NaN` and `Infinity` are numbers.

    Raises:
        ValueError, RecursionError: the content is refused.
    """
    text = content.decode("utf-8")
    _require_shallow(text, max_depth)
    found = json.loads(
        text,
        object_pairs_hook=_unique,
        parse_constant=float if allow_nan else _no_constant,
        parse_float=None if allow_nan else _finite,
    )
    if _SURROGATE.search(text):
        json.dumps(found, ensure_ascii=False).encode()
    return found


def _require_shallow(text: str, max_depth: int) -> None:
    """Count brackets outside of strings, because a parser would use the stack of the process."""
    depth = 0
    for bracket in _NO_BRACKET.sub("", _STRING.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > max_depth:
            raise ValueError(f"arrays and objects nest deeper than {max_depth}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict[str, Any]()
    for name, value in pairs:
        if name in found:
            raise ValueError(f"the key {name[:60]!r} stands twice in one object")
        found[name] = value
    return found


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is not a JSON number")


def _finite(digits: str) -> float:
    found = float(digits)
    if found - found != 0:
        raise ValueError(f"the number {digits[:40]} is too large")
    return found
