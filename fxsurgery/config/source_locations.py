"""Locate an entry of a config: the line of the file, or the flag."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from fxsurgery.config.run_config import flag

KeyPath: TypeAlias = tuple[str | int, ...]
"""Keys from the outermost table inward."""

_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
_ENTRY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"))*)\s*=""")


@dataclass(frozen=True)
class Origins:
    """Where the entries of a config came from."""

    path: Path | None = None
    text: str = ""
    """Text of the file."""
    flags: Mapping[str, Any] = field(default_factory=dict)
    table: Mapping[str, Any] = field(default_factory=dict)
    """Parsed content of the file."""

    def in_file(self, name: str) -> bool:
        """Return True if the file has the key and no flag overrides it."""
        return name in self.table and name not in self.flags

    def tell(self, place: KeyPath) -> str:
        """Return the location and name of an entry: `--set align`, or `run.toml, line 7: settings.align`."""
        if not place:
            return str(self.path or "the flags")
        name, inner = str(place[0]), [str(part) for part in place[1:]]
        by_flag = self.flags.get(name)
        is_in_file = isinstance(by_flag, Mapping) and inner and inner[0] not in by_flag
        if self.path is None or (name in self.flags and not is_in_file):
            return " ".join([flag(name), *([".".join(inner)] if inner else [])])
        line = line_of(self.text, place, json=self.path.suffix == ".json")
        return f"{self.path}{f', line {line}' if line else ''}: {'.'.join([name, *inner])}"


def line_of(text: str, place: KeyPath, *, json: bool = False) -> int | None:
    """Return the line number, from 1, of the entry at `place`, or of its innermost table that has a line."""
    keys = [part for part in place if isinstance(part, str)]
    return _json_line(text, keys) if json else _toml_line(text, keys)


def _toml_line(text: str, keys: list[str]) -> int | None:
    table, best, line = list[str](), 0, None
    for number, content in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(content):
            here = table = _parts(header[1])
        elif entry := _ENTRY.match(content):
            here = [*table, *_parts(entry[1])]
        else:
            continue
        if best < len(here) <= len(keys) and here == keys[: len(here)]:
            best, line = len(here), number
    return line


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]


def _json_line(text: str, keys: list[str]) -> int | None:
    found, at = None, 0
    for key in keys:
        match = re.compile(rf'"{re.escape(key)}"\s*:').search(text, at)
        if match is None:
            break
        found, at = match.start(), match.end()
    return None if found is None else text.count("\n", 0, found) + 1
