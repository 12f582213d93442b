"""The schema of the records of a journal.

value   a measured or random value, by name
stage   a training: its curve, the reason why it failed or was stopped, the checksum of its weights
end     the result: a note, and the checksums of its files
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Any, TypeAlias

from fxsurgery.errors import RunError
from fxsurgery.runs.journal import Journal, Record
from fxsurgery.training.snapshot_schema import are_terms, is_curve, is_number

_Field: TypeAlias = Callable[[Any], bool]

_SHA256 = re.compile(r"[0-9a-f]{64}")


def is_text(value: object) -> bool:
    """Return True for a string."""
    return isinstance(value, str)


def is_amount(value: object) -> bool:
    """Return True for a non-negative number, such as seconds."""
    return is_number(value) and value >= 0


def are_amounts(count: int) -> _Field:
    """Return a check for a list of `count` non-negative numbers."""
    return lambda value: isinstance(value, list) and len(value) == count and all(map(is_amount, value))


def is_choice_of(options: Collection[tuple[str | None, str | None]]) -> _Field:
    """Return a check for a pair of memory and number format out of `options`, with the reason for it."""
    return lambda value: (
        isinstance(value, list)
        and len(value) == 3
        and all(map(_is_text_or_none, value))
        and (value[0], value[1]) in options
        and is_text(value[2])
    )


def _is_text_or_none(value: object) -> bool:
    return value is None or isinstance(value, str)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


def _is_checksum(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


def _is_table(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(point, dict) and _is_flat(point) for point in value)


def _is_flat(point: Mapping[str, Any]) -> bool:
    return all(value is None or isinstance(value, str | int | float) or are_terms(value) for value in point.values())


def _are_checksums(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_checksum, value.values()))


def _is_anything(value: object) -> bool:
    del value
    return True


def require_curve(records: object, stage: str) -> None:
    """Require a training curve.

    Raises:
        RunError: the records are not a training curve; the message names the stage.
    """
    if not is_curve(records):
        raise RunError(f"the journal's training curve of stage {stage!r} is malformed; start in another directory")


_MUST: Mapping[str, Mapping[str, _Field]] = {
    "value": {"name": is_text, "value": _is_anything},
    "stage": {"name": is_text, "records": _is_table, "failure": _is_text_or_none, "stopped": _is_flag},
    "end": {"name": is_text, "note": _is_text_or_none, "files": _are_checksums},
}
_MAY: Mapping[str, Mapping[str, _Field]] = {"stage": {"lost": _is_count, "weights": _is_checksum}}


def require_known(journal: Journal) -> None:
    """Require that every record of a journal follows the schema.

    Raises:
        RunError: a record does not; the message names the line.
    """
    for number, record in enumerate(journal.records, 1):
        if why := _why_not(record):
            raise journal.damaged(number, why)


def _why_not(record: Record) -> str:
    """Return what is wrong with a record; an empty string if nothing is."""
    kind = record.get("kind")
    if not isinstance(kind, str) or kind not in _MUST:
        return "it has an unknown kind"
    must, may = _MUST[kind], _MAY.get(kind, {})
    if other := sorted(record.keys() - {"kind", *must, *may}):
        return f"unknown key {other[0][:40]!r}"
    if missing := sorted(must.keys() - record.keys()):
        return f"no key {missing[0]!r}"
    if wrong := [name for name, is_right in {**must, **may}.items() if name in record and not is_right(record[name])]:
        return f"{wrong[0]!r} is not of its type"
    if kind == "stage" and (record["failure"] is None) != ("weights" in record):
        return "a stage has either weights or a failure"
    return ""
