"""The schema of a training snapshot, which it is checked against when it is read."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeAlias, TypeGuard

from torch import Tensor

from fxsurgery.errors import TrainingError
from fxsurgery.training.evaluate import Score
from fxsurgery.training.progress import TrainingProgress

_Field: TypeAlias = Callable[[Any], bool]

_POINT = {f.name for f in fields(TrainingProgress)}
_SCORE = {f.name for f in fields(Score)}


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a number, finite or not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_count(value: object) -> TypeGuard[int]:
    """Return whether a value is a non-negative integer."""
    return type(value) is int and value >= 0


def is_score(value: object) -> bool:
    """Return whether a value holds the fields of a `Score`."""
    if not isinstance(value, dict) or value.keys() != _SCORE or not isinstance(value["figures"], dict):
        return False
    return all(map(is_number, (value["metric"], value["loss"], value["samples"], *value["figures"].values())))


def is_curve(value: object) -> bool:
    """Return whether a value is a list of the fields of `TrainingProgress`, as in `Progress.history`."""
    return isinstance(value, list | tuple) and all(isinstance(point, dict) and _is_point(point) for point in value)


def require_snapshot(snapshot: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise an error if a snapshot is not of this schema.

    Args:
        snapshot: content of a file.
        identity: fields that have been checked already.

    Raises:
        TrainingError: a field is wrong; the message names the first one.
    """
    if other := snapshot.keys() ^ {*identity, *_FIELDS}:
        raise TrainingError(f"the snapshot is damaged: {min(map(str, other))!r} is missing or unknown; {_REMEDY}")
    if wrong := [name for name, is_right in _FIELDS.items() if not is_right(snapshot[name])]:
        raise TrainingError(f"the snapshot is damaged: {wrong[0]!r} is not of its type; {_REMEDY}")
    batches = snapshot["step"] * identity["accumulate"]
    if snapshot["step"] > identity["steps"] or max(snapshot["epoch"], snapshot["drawn"]) > batches:
        raise TrainingError(f"the snapshot is damaged: `step`, `drawn` or `epoch` is more than there are; {_REMEDY}")


_REMEDY = "delete it, and the stage begins anew"


def _is_point(point: Mapping[str, Any]) -> bool:
    if point.keys() | {"terms"} != _POINT or not isinstance(point["stage"], str):
        return False
    metric = point["metric"]
    rest = (value for name, value in point.items() if name not in {"stage", "metric", "terms"})
    return (metric is None or is_number(metric)) and are_terms(point.get("terms", {})) and all(map(is_number, rest))


def are_terms(value: object) -> bool:
    """Return whether a value holds numbers by name."""
    return isinstance(value, dict) and all(isinstance(name, str) and is_number(x) for name, x in value.items())


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _is_dict_or_none(value: object) -> bool:
    return value is None or isinstance(value, dict)


def _are_tensors(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(t, Tensor) for t in value.values())


def _is_early_stopping(value: object) -> bool:
    """Return True for the state of an `EarlyStopping`."""
    if not isinstance(value, dict) or value.keys() != {"waited", "best", "step", "tensors"}:
        return False
    return (
        is_count(value["waited"])
        and is_count(value["step"])
        and (value["best"] is None or is_score(value["best"]))
        and _are_tensors(value["tensors"])
    )


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


_FIELDS: Mapping[str, _Field] = {
    "optimizer": _is_dict,
    "scaler": _is_dict_or_none,
    "hooks": _is_dict_or_none,
    "step": is_count,
    "tensors": _are_tensors,
    "random": lambda value: isinstance(value, list) and all(map(_is_dict, value)),
    "epoch": is_count,
    "drawn": is_count,
    "samples": is_count,
    "pending": _are_numbers,
    "terms": are_terms,
    "score": lambda value: value is None or is_score(value),
    "records": is_curve,
    "seconds": is_number,
    "early_stopping": lambda value: value is None or _is_early_stopping(value),
}
