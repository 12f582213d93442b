"""What a run did, one JSON record a line, each on the disk before the next thing begins.

A process that is killed while it writes leaves half a line at the end. It says nothing, and is cut off.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from fxsurgery.errors import RunError
from fxsurgery.files import settle, writing

Record: TypeAlias = Mapping[str, Any]
"""Plain JSON; floats that are not finite are written as Python's `json` does."""


class Journal:
    """The records of a file, in order, and a way to add to them."""

    def __init__(self, path: Path) -> None:
        """Read what is there.

        Raises:
            RunError: the file cannot be read, or a line that is not the last is no JSON object.
        """
        self.path = path
        self.records = list[Record]()
        with writing(path):
            content = path.read_bytes() if path.exists() else b""
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            self.records.append(self._parsed(line, number))
        if whole < len(content):
            with writing(path):
                os.truncate(path, whole)

    def append(self, record: Record) -> None:
        """Add a record; it is on the disk when this returns.

        Raises:
            RunError: the system refuses, e.g. since the disk is full. What was there stays.
        """
        new = not self.path.exists()
        with writing(self.path):
            length = 0 if new else self.path.stat().st_size
            try:
                with self.path.open("ab") as file:
                    file.write(json.dumps(record).encode() + b"\n")
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                if self.path.exists():
                    os.truncate(self.path, length)
                raise
            if new:
                settle(self.path.parent)
        self.records.append(json.loads(json.dumps(record)))

    def _parsed(self, line: bytes, number: int) -> Record:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise self._damaged(number, str(error)) from error
        if not isinstance(record, dict):
            raise self._damaged(number, "no JSON object")
        return record

    def _damaged(self, number: int, why: str) -> RunError:
        return RunError(f"{self.path} is damaged in line {number} ({why}); begin in another directory")
