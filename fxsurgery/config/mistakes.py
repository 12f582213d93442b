"""Messages for the mistakes in a config, each with its location and the declared type of the value."""

import types
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ValidationError

from fxsurgery.config.source_locations import KeyPath, Origins
from fxsurgery.config.unknown_names import unknown, unknown_key
from fxsurgery.option_text import demand, shown
from fxsurgery.option_types import hints_of
from fxsurgery.type_check import BOUNDS

_UNKNOWN = {"extra_forbidden", "unexpected_keyword_argument"}
_MISSING = {"missing", "missing_argument", "missing_keyword_only_argument"}


def mistakes(error: ValidationError, origins: Origins, at: KeyPath, declared: Mapping[str, Any]) -> Iterator[str]:
    """Yield a message for each mistake that pydantic found, one for each entry.

    Args:
        error: the error that pydantic raised.
        origins: where each entry came from.
        at: the path of the table that was validated.
        declared: the annotation of each of its entries.
    """
    seen = set[KeyPath]()
    for found in error.errors(include_url=False, include_context=False):
        place, hint = _resolved(found["loc"], declared)
        if place not in seen:
            seen.add(place)
            yield _mistake(found, origins, (*at, *place), hint, declared)


def conversions(table: Mapping[str, Any], made: object, origins: Origins, at: KeyPath) -> Iterator[str]:
    """Yield a mistake for each text in place of a number, and each value in place of true or false.

    Pydantic converts these: "no" would be false, and "8" a number.

    Args:
        table: the values as they were given.
        made: the validated dataclass.
        origins: where each entry came from.
        at: the path of the table.
    """
    hints = hints_of(type(made))
    for name, value in table.items():
        result = getattr(made, name, None)
        is_text = isinstance(value, str) and isinstance(result, int | float)
        if is_text or (isinstance(result, bool) and not isinstance(value, bool)):
            where = origins.tell((*at, name))
            yield f"{where}{demand(hints[name], value, is_bound=False)}, and is {shown(value)}"


def _mistake(found: Any, origins: Origins, place: KeyPath, hint: Any, declared: Mapping[str, Any]) -> str:  # noqa: ANN401
    kind = found["type"]
    if kind in _MISSING and place == ("model",):
        return "no model: name it as module:factory, or as a saved directory"
    where = origins.tell(place)
    if kind in _UNKNOWN:
        inner = dataclass_of(hint)
        name = str(place[-1])
        if inner is not None:
            return f"{where}: {unknown(name, [f.name for f in fields(inner)], 'limit')}"
        return f"{where}: {unknown_key(name, declared) if len(place) == 1 else unknown(name, declared, 'key')}"
    if kind in _MISSING:
        return f"{where}: {found['msg']}"
    if kind == "value_error":
        return f"{where}: {found['msg'].removeprefix('Value error, ')}"
    value, table = found["input"], dataclass_of(hint)
    said = demand(hint, value, is_bound=kind in BOUNDS)
    if table is not None:
        said = f": it must be a table of {', '.join(f.name for f in fields(table))}"
    repeated = isinstance(value, str) and shown(value) in said
    return f"{where}{said}" if repeated else f"{where}{said}, and is {shown(value)}"


def _resolved(loc: KeyPath, declared: Mapping[str, Any]) -> tuple[KeyPath, Any]:
    """Return the path of an entry and its annotation; for an unknown key, the annotation of its table.

    Pydantic appends the branch of a union that it tried, which is left out.
    """
    hint: Any = declared.get(str(loc[0])) if loc else None
    for depth, part in enumerate(loc[1:], 1):
        inner, entry = dataclass_of(hint), _entry_of(hint)
        if inner is not None and part in hints_of(inner):
            hint = hints_of(inner)[str(part)]
        elif isinstance(part, int) and entry is not None:
            hint = entry
        else:
            return (loc if inner is not None else loc[:depth]), hint
    return loc, hint


def dataclass_of(hint: Any) -> type[Any] | None:  # noqa: ANN401 -- any annotation
    """Return the dataclass that an annotation admits; `None` if there is none."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return dataclass_of(inner[0])
    if kind in {Union, types.UnionType}:
        return next((found for one in inner if (found := dataclass_of(one)) is not None), None)
    return hint if isinstance(hint, type) and is_dataclass(hint) else None


def _entry_of(hint: Any) -> Any:  # noqa: ANN401 -- any annotation
    """Return the annotation of the entries of a tuple of any length; `None` for other annotations."""
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return get_args(bare)[0] if get_origin(bare) is tuple else None
