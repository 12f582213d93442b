"""How the settings of a run differ from those that its run directory records, key by key.

Nested keys are named by their path (`config.finetune_epochs: 15 -> 5`). Hashes are shortened and named by what they
stand for, so that a reader sees whether the weights, the data or the code of a function changed.
"""

import itertools
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from fxsurgery.argument_names import named
from fxsurgery.printable import printable

Path: TypeAlias = tuple[str | int, ...]

MAX_SHOWN = 12
"""Number of differences that a message lists."""
MAX_LENGTH = 60
"""Number of characters of a value that a message shows."""
NOT_SET = "(not set)"
ARROW = "->"

_LABELS: Mapping[Path, str] = {
    ("fingerprint",): "the captured model",
    ("fingerprint", "graph"): "the graph of the model",
    ("fingerprint", "weights"): "the weights of the model",
    ("fingerprint", "example_inputs"): "the example inputs, by default the first training samples",
    ("task", "batches", "train_data"): "the number of batches of train_data",
    ("task", "batches", "val_data"): "the number of batches of val_data",
}
_SHORT_HASH, _HASH = re.compile(r"[0-9a-f]{16}"), re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}")
_DEPENDS_ON = {"settings": "method"}
"""Keys that say nothing new where another key differs as well: each method has settings of its own."""
_MISSING = object()


def differences(recorded: Mapping[str, Any], requested: Mapping[str, Any]) -> list[str]:
    """Return one line, `key: recorded -> requested`, for each key in which two runs differ.

    Args:
        recorded: settings in the run directory, as plain JSON.
        requested: settings of the current run, as plain JSON.

    Example:
        >>> differences({"seed": 0, "settings": {"align": 8}}, {"seed": 0, "settings": {"align": 4}})
        ['config.align: 8 -> 4']
    """
    keys = _union(recorded, requested)
    other = {key for key in keys if recorded.get(key, _MISSING) != requested.get(key, _MISSING)}
    shown = [key for key in keys if key in other and _DEPENDS_ON.get(key) not in other]
    found = [
        line for key in shown for line in _lines((key,), recorded.get(key, _MISSING), requested.get(key, _MISSING))
    ]
    rest = len(found) - MAX_SHOWN
    return [*found[:MAX_SHOWN], *([f"and {rest} more"] if rest > 0 else [])]


def _lines(path: Path, before: Any, after: Any) -> Iterator[str]:  # noqa: ANN401 -- plain JSON
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in _union(before, after):
            yield from _lines((*path, key), before.get(key, _MISSING), after.get(key, _MISSING))
    elif _is_same_kind(before, after):
        for at, (old, new) in enumerate(zip(before, after, strict=True)):
            yield from _element(path, str(before[0]), at, old, new)
    else:
        yield f"{_label(path)}: {_shown(before)} {ARROW} {_shown(after)}"


def _element(path: Path, name: str, at: int, before: Any, after: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield the differences in one element of a list; `name` is its first, the name of a function or class if any."""
    if before != after and _is_hash(before, _SHORT_HASH) and _is_hash(after, _SHORT_HASH):
        yield f"{_label(path)}: the code of {printable(name)} changed ({_shown(before)} {ARROW} {_shown(after)})"
    elif isinstance(before, dict) and isinstance(after, dict):
        yield from _lines(path, before, after)
    else:
        yield from _lines((*path, at), before, after)


def _is_same_kind(before: Any, after: Any) -> bool:  # noqa: ANN401
    """Return True for two lists that differ inside: of one length, and of one name where they describe an object."""
    if not (isinstance(before, list) and isinstance(after, list) and len(before) == len(after) > 0):
        return False
    return not isinstance(before[0], str) or before[0] == after[0]


def _label(path: Path) -> str:
    if path in _LABELS:
        return _LABELS[path]
    text, inner = "", path[1:] if path[0] == "task" and len(path) > 1 else path  # the parts of a task are arguments
    groups = itertools.groupby(inner, key=lambda part: isinstance(part, int))
    for is_index, parts in groups:
        part_list = list(parts)
        if is_index:
            text += "".join(f"[{part}]" for part in part_list)
        else:
            text += f".{'.'.join(map(str, part_list))}" if text else named(*part_list)
    return printable(f"config{text.removeprefix('settings')}" if text.startswith("settings") else text)


def _shown(value: Any) -> str:  # noqa: ANN401
    """Return a value on one line: hashes, arrays and long texts shortened."""
    if value is _MISSING:
        return NOT_SET
    if _is_hash(value, _HASH):
        return f"{value[:8]}..."
    if isinstance(value, list) and len(value) > 1 and isinstance(value[0], str) and "." in value[0]:
        value = value[0]  # a function or object is described by its name, then by what it holds
    text = json.dumps(value)
    return text if len(text) <= MAX_LENGTH else f"{text[:MAX_LENGTH]}..."


def _is_hash(value: object, form: re.Pattern[str]) -> bool:
    return isinstance(value, str) and form.fullmatch(value) is not None


def _union(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys of both in order, each once."""
    return list(dict.fromkeys((*one, *other)))
