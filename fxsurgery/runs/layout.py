"""The layout of a run directory, and the checks before a run starts, resumes or is refused there."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fxsurgery.argument_names import assigned, command
from fxsurgery.errors import RunError
from fxsurgery.files import write_whole, writing
from fxsurgery.runs.differences import differences
from fxsurgery.strict_json import read_json

CONFIG, JOURNAL, STAGES, BEST, RESULT = "config.json", "journal.jsonl", "stages", "best", "result"
REPORT, LOGS = "report.html", "logs"
FORMAT = 1
MOST_CONFIG_BYTES, MOST_CONFIG_DEPTH = 2**26, 256
ENVIRONMENT = "environment"
"""The settings that may differ when a run is resumed; the results may then differ in rounding."""


def begin(path: Path, requested: Mapping[str, Any], *, resume: bool) -> list[str]:
    """Prepare a directory for a new run, or check that the run in it may be resumed.

    Args:
        path: the directory.
        requested: the settings of the run, as plain JSON.
        resume: whether to continue a run that is there.

    Returns:
        Notes on environment settings that differ from the recorded run.

    Raises:
        RunError: the directory holds a run and `resume` is False, or a run with other settings; or it is damaged.
    """
    found = examine(path, requested, resume=resume)
    _clear(path)
    if not found.is_resumed:
        with writing(path):
            (path / JOURNAL).unlink(missing_ok=True)
        write_whole(path / CONFIG, json.dumps(found.settings, indent=2).encode())
    return found.notes


@dataclass(frozen=True)
class Examined:
    """The outcome of checking a directory for a run."""

    settings: Mapping[str, Any]
    """The settings of the run, as `CONFIG` holds them."""
    is_resumed: bool
    """Whether the run in the directory would be resumed."""
    notes: list[str] = field(default_factory=list)


def examine(path: Path, requested: Mapping[str, Any], *, resume: bool) -> Examined:
    """Check whether a run may start in a directory, or the run in it be resumed, and change nothing.

    Raises:
        RunError: as `begin` does.
    """
    _require_kinds(path)
    before = _config(path / CONFIG)
    now: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **requested}))
    changed = [] if before is None else differences(_identity(before), _identity(now))
    # A run that was refused before it trained, such as for its budget, leaves nothing to protect.
    if before is None or ((changed or not resume) and not _has_trained(path)):
        return Examined(now, is_resumed=False)
    if not resume:
        raise RunError(
            f"{path} holds a run already: pass {assigned('resume', value=True)} to continue it, or another directory"
        )
    if changed:
        listed = "\n".join(f"  {line}" for line in changed)
        raise RunError(
            f"{path} holds a run with other settings (recorded -> requested):\n{listed}\n"
            "restore the recorded values to resume it, or start in another directory"
        )
    return Examined(now, is_resumed=True, notes=_environment(before, now))


def require_writable(path: Path) -> None:
    """Refuse a path that is not a directory, or could not be made one.

    Raises:
        RunError: it names the path that stands in the way.
    """
    with writing(path):
        existing = next(one for one in (path.absolute(), *path.absolute().parents) if os.path.lexists(one))
    if not existing.is_dir():
        raise RunError(f"{existing} is not a directory; choose another directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise RunError(
            f"{existing} cannot be written to: no permission, or a read-only file system; choose another directory"
        )


def require_ours(path: Path) -> None:
    """Refuse a directory that holds other files and no run.

    Raises:
        RunError: it holds files, but no run.
    """
    with writing(path):
        there = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    if there and CONFIG not in there:
        raise RunError(f"{path} holds {', '.join(there[:3])} and no run; give an empty directory, or a new one")


def result_directory(path: Path) -> Path:
    """Return the directory of the result in `path`: `path` itself unless it is a run directory.

    Raises:
        RunError: the run has not finished; the message says how to resume it.
    """
    if not (path / CONFIG).is_file():
        return path
    if not (path / RESULT).is_dir():
        raise RunError(
            f"{path} holds a run that has not finished, so there is no result to load; run "
            f"{command('optimize')} again with the same arguments and {assigned('resume', value=True)} to finish it"
        )
    return path / RESULT


def _require_kinds(path: Path) -> None:
    """Refuse a directory, pipe or socket in place of a file, and a file in place of a directory, before training.

    Raises:
        RunError: a path has the wrong type; the message names the first.
    """
    with writing(path):
        for name in (CONFIG, JOURNAL, REPORT):
            if os.path.lexists(path / name) and not (path / name).is_file():
                raise RunError(f"{path / name} is not a regular file; remove it, or start in another directory")
        for name in (STAGES, BEST, RESULT, LOGS):
            if os.path.lexists(path / name) and not (path / name).is_dir():
                raise RunError(f"{path / name} is not a directory; remove it, or start in another directory")


def _clear(path: Path) -> None:
    """Remove temporary files that a killed process left behind."""
    with writing(path):
        names = (CONFIG, BEST, RESULT, REPORT)
        for left in (*(p for name in names for p in path.glob(f".{name}.*")), *(path / STAGES).glob(".*")):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def _config(path: Path) -> dict[str, Any] | None:
    """Return the recorded settings of a run, or None if there is no run."""
    if not os.path.lexists(path):
        return None
    try:
        found = read_json(path, max_bytes=MOST_CONFIG_BYTES, max_depth=MOST_CONFIG_DEPTH, allow_nan=True)
    except RunError as error:
        raise RunError(f"{error}, or start in another directory") from error
    if not isinstance(found, dict):
        raise RunError(
            f"{path} is damaged: it is not a JSON object; restore an intact copy, or start in another directory"
        )
    return found


def _has_trained(path: Path) -> bool:
    with writing(path):
        return any((path / STAGES).glob("*"))


def _identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that must agree when a run is resumed."""
    return {key: value for key, value in settings.items() if key != ENVIRONMENT}


def _environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    changed = differences({ENVIRONMENT: before.get(ENVIRONMENT)}, {ENVIRONMENT: now.get(ENVIRONMENT)})
    return [f"resumed in another environment ({'; '.join(changed)}): results may differ in rounding"] if changed else []
