"""What stands in a run directory when a run comes to it: nothing, a run to go on with, or what is none of ours."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fxsurgery.argument_names import assigned
from fxsurgery.errors import RunError
from fxsurgery.files import write_whole, writing
from fxsurgery.strict_json import read_json

CONFIG, JOURNAL, STAGES, BEST, RESULT = "config.json", "journal.jsonl", "stages", "best", "result"
REPORT, LOGS = "report.html", "logs"
FORMAT = 1
MOST_CONFIG_BYTES, MOST_CONFIG_DEPTH = 2**26, 256
ENVIRONMENT = "environment"
"""The settings that may differ when a run is resumed: the end may then differ in rounding."""


def begin(path: Path, asked: Mapping[str, Any], *, resume: bool) -> list[str]:
    """Make a directory ready for a run that asks for `asked`, plain JSON, or find it to be that of such a run.

    Returns:
        Notes on what differs from the run that is there.

    Raises:
        RunError: it holds a run that is not to be resumed, or that asked for something else; or is damaged.
    """
    _require_kinds(path)
    _clear(path)
    before = _config(path / CONFIG)
    now: dict[str, Any] = json.loads(json.dumps({"format": FORMAT, **asked}))
    other = sorted(k for k in {*(before or now), *now} if k != ENVIRONMENT and (before or now).get(k) != now.get(k))
    if (other or not resume) and not _has_trained(path):
        # What is there was refused before it trained, such as for its budget, and is in nobody's way.
        before = None
        with writing(path):
            (path / JOURNAL).unlink(missing_ok=True)
    if before is None:
        write_whole(path / CONFIG, json.dumps(now, indent=2).encode())
        return []
    if not resume:
        raise RunError(
            f"{path} holds a run already: pass {assigned('resume', value=True)} to go on with it, or another directory"
        )
    if other:
        told = "; ".join(_difference(k, before.get(k), now.get(k)) for k in other)
        raise RunError(f"{path} holds a run that asked for something else: {told}. Begin in another directory")
    return _environment(before, now)


def require_ours(path: Path) -> None:
    """Refuse a folder of something else.

    Raises:
        RunError: it holds files, and no run.
    """
    with writing(path):
        there = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    if there and CONFIG not in there:
        raise RunError(f"{path} holds {', '.join(there[:3])} and no run; give an empty directory, or a new one")


def _require_kinds(path: Path) -> None:
    """Refuse a folder, pipe or socket where a file is to be, and a file where a folder is, before hours of training.

    Raises:
        RunError: it names the first.
    """
    with writing(path):
        for name in (CONFIG, JOURNAL, REPORT):
            if os.path.lexists(path / name) and not (path / name).is_file():
                raise RunError(f"{path / name} is not a regular file; remove it, or begin in another directory")
        for name in (STAGES, BEST, RESULT, LOGS):
            if os.path.lexists(path / name) and not (path / name).is_dir():
                raise RunError(f"{path / name} is not a directory; remove it, or begin in another directory")


def _clear(path: Path) -> None:
    """Remove what a killed process was about to put in its place."""
    with writing(path):
        names = (CONFIG, BEST, RESULT, REPORT)
        for left in (*(p for name in names for p in path.glob(f".{name}.*")), *(path / STAGES).glob(".*")):
            if left.is_dir() and not left.is_symlink():
                shutil.rmtree(left)
            else:
                left.unlink()


def _config(path: Path) -> dict[str, Any] | None:
    """What a run asked for; `None` where there is none."""
    if not os.path.lexists(path):
        return None
    try:
        found = read_json(path, max_bytes=MOST_CONFIG_BYTES, max_depth=MOST_CONFIG_DEPTH, allow_nan=True)
    except RunError as error:
        raise RunError(f"{error}, or begin in another directory") from error
    if not isinstance(found, dict):
        raise RunError(
            f"{path} is damaged: it is no JSON object; restore an intact copy, or begin in another directory"
        )
    return found


def _has_trained(path: Path) -> bool:
    with writing(path):
        return any((path / STAGES).glob("*"))


def _environment(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    was, is_ = before.get(ENVIRONMENT), now.get(ENVIRONMENT)
    return [f"resumed in another environment ({was}, now {is_}): the end may differ in rounding"] if was != is_ else []


def _difference(name: str, before: object, now: object) -> str:
    if name == "fingerprint":
        return "the model, its weights or the first inputs are others"
    return f"{name} was {_short(before)}, is {_short(now)}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:200]}..."
