"""The journal of a run: one JSON record a line, each written to disk before the run continues.

A line ends with the SHA-256 of the text before it, which reveals any changed bit. A process that is killed while it
writes leaves an incomplete last line, which is cut off.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fxsurgery.errors import RunError, reason_of
from fxsurgery.files import settle, writing
from fxsurgery.runs.bounded_reading import read_whole
from fxsurgery.strict_json import strict_loads

Record: TypeAlias = Mapping[str, Any]
"""Plain JSON; non-finite floats are written as by Python's `json`."""

MOST_BYTES = 2**31
_CHECKSUM = re.compile(rb', "sha256": "([0-9a-f]{64})"}')
_CHECKSUM_LENGTH = len(', "sha256": ""}') + 64


class Journal:
    """The records of a journal file, in order; new ones are appended."""

    def __init__(self, path: Path, *, truncate: bool = True) -> None:
        """Read the records of a file.

        Args:
            path: the file, which need not exist.
            truncate: whether to cut off the half line that a killed process left.

        Raises:
            RunError: the file cannot be read, or a complete line is damaged.
        """
        self.path = path
        content = read_whole(path, MOST_BYTES) if os.path.lexists(path) else b""
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].split(b"\n")[:-1]
        parsed = [self._parsed(line, number) for number, line in enumerate(lines, 1)]
        self.records: list[Record] = [self._checked(one, lines[i], i + 1) for i, one in enumerate(parsed)]
        if truncate and whole < len(content):
            with writing(path):
                os.truncate(path, whole)

    def append(self, record: Record) -> None:
        """Append a record, which has at least one key, and write it to disk.

        Raises:
            RunError: the file cannot be written, e.g. the disk is full. Earlier records stay intact.
        """
        body = json.dumps(record)
        line = f'{body[:-1]}, "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"}}\n'
        new = not self.path.exists()
        with writing(self.path):
            length = 0 if new else self.path.stat().st_size
            try:
                with self.path.open("ab") as file:
                    file.write(line.encode())
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, length)
                raise
            if new:
                settle(self.path.parent)
        self.records.append(json.loads(body))

    def damaged(self, number: int, why: str) -> RunError:
        """Return the error for a damaged line, counted from 1."""
        return RunError(
            f"{self.path} is damaged in line {number} ({why}); start in another directory, or remove this line and all "
            "below it, and the run repeats what they record"
        )

    def _parsed(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            record = strict_loads(line, allow_nan=True)
        except (ValueError, RecursionError) as error:
            raise self.damaged(number, reason_of(error)) from error
        if not isinstance(record, dict):
            raise self.damaged(number, "it is not a JSON object")
        return record

    def _checked(self, record: dict[str, Any], line: bytes, number: int) -> Record:
        body, end = line[:-_CHECKSUM_LENGTH] + b"}", _CHECKSUM.fullmatch(line[-_CHECKSUM_LENGTH:])
        if end is None or end[1].decode() != hashlib.sha256(body).hexdigest():
            raise self.damaged(number, "its checksum does not match" if end else "it has no checksum")
        del record["sha256"]
        return record
