"""Checks of values against annotations by pydantic in strict mode; values are not converted.

Beyond pydantic, this package refuses integers too wide for a tensor or a file, values that only convert to a number
(such as a tensor), and a `str` as a collection. A class is checked by `isinstance`, whatever fields it has.
"""

import functools
import operator
import types
from collections.abc import Collection, Iterable
from dataclasses import is_dataclass
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, TypeAdapter, ValidationError

from fxsurgery.option_text import WIDEST

BOUNDS = frozenset("greater_than greater_than_equal less_than less_than_equal predicate_failed literal_error".split())
"""Pydantic's error types for a value of the right type that violates a constraint."""
_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)


def faults(value: object, hint: Any) -> frozenset[str]:  # noqa: ANN401 -- any annotation
    """Return pydantic's error types for a value; empty if it fits the annotation.

    Example:
        >>> faults(1, float | None), sorted(faults("a", int))
        (frozenset(), ['value_error'])
    """
    if hint is Any:
        return frozenset()
    try:
        _adapter(hint).validate_python((value,))
    except ValidationError as error:
        return frozenset(found["type"] for found in error.errors(include_url=False, include_input=False))
    return frozenset()


@functools.cache
def _adapter(hint: Any) -> TypeAdapter[Any]:  # noqa: ANN401 -- any annotation
    alone = types.GenericAlias(tuple, (declared(hint),))  # some types take no config by themselves
    return TypeAdapter(alone, config=_STRICT)  # type: ignore[arg-type]  # made at run time


def declared(hint: Any) -> Any:  # noqa: ANN401 -- any annotation
    """Return the annotation with the constraints that this package adds to pydantic's."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        bare = inner[0] in _NUMBERS  # pydantic wants bounds next to the number itself
        parts = (*inner, _NARROW) if bare else (declared(inner[0]), *inner[1:])
        return Annotated[parts]
    if kind in {Union, types.UnionType}:
        return functools.reduce(operator.or_, map(declared, inner))
    if kind is tuple:
        return types.GenericAlias(tuple, tuple(one if one is ... else declared(one) for one in inner))
    return _declared_class(hint, kind)


def _declared_class(hint: Any, kind: Any) -> Any:  # noqa: ANN401 -- any annotation
    if kind is ClassVar or _is_structural(hint):
        return Any
    if hint in _NUMBERS:
        return Annotated[hint, _NARROW]
    if kind in {Collection, Iterable}:
        return Annotated[hint, BeforeValidator(_no_text)]
    if kind is None and is_dataclass(hint):
        return Annotated[Any, BeforeValidator(functools.partial(_instance, hint))]
    return hint


def classes_in(hint: Any) -> tuple[type, ...]:  # noqa: ANN401 -- any annotation
    """Return the classes whose instances an annotation takes, those of builtins excepted.

    Example:
        >>> from pathlib import Path
        >>> classes_in(Path | int | None) == (Path,)
        True
    """
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return classes_in(inner[0])
    if kind in {Union, types.UnionType}:
        return tuple(found for one in inner for found in classes_in(one))
    is_plain = isinstance(hint, type) and kind is None and hint.__module__ != "builtins"
    return (hint,) if is_plain and not getattr(hint, "_is_protocol", False) else ()


def _is_structural(hint: Any) -> bool:  # noqa: ANN401 -- any annotation
    """Return True if an annotation is a protocol that cannot be checked at run time."""
    return getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False)


def _narrow(value: object) -> object:
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError("it is not a number of Python's")  # noqa: TRY004 -- what pydantic takes as a wrong value
    if isinstance(value, int) and value.bit_length() > WIDEST:
        raise ValueError(f"it has more than {WIDEST} bits")
    return value


def _instance(kind: Any, value: object) -> object:  # noqa: ANN401 -- a dataclass
    if not isinstance(value, kind):
        raise ValueError(f"it is no {kind.__name__}")  # noqa: TRY004 -- what pydantic takes as a wrong value
    return value


def _no_text(value: object) -> object:
    if isinstance(value, str | bytes | bytearray):
        raise ValueError("a text is no collection")  # noqa: TRY004 -- what pydantic takes as a wrong value
    return value


_NUMBERS = (int, float)
_NARROW = BeforeValidator(_narrow)
