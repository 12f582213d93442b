"""Whether the options of a pass are of the types that it declares: told before anything is run."""

import types
from dataclasses import fields
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from fxsurgery.errors import SpecError


def check_options(owner: Any) -> None:  # noqa: ANN401 -- any dataclass
    """Refuse a value of another type than its field is declared with.

    Raises:
        SpecError: it names the option, what was given, and what is wanted.
    """
    hints = get_type_hints(type(owner))
    for option in fields(owner):
        value, hint = getattr(owner, option.name), hints[option.name]
        if not _fits(value, hint):
            raise SpecError(f"{owner.name}: {option.name}={value!r} is not of type {_shown(hint)}")


def _fits(value: object, hint: Any) -> bool:  # noqa: ANN401
    kind, inner = get_origin(hint), get_args(hint)
    if kind in {Union, types.UnionType}:
        return any(_fits(value, one) for one in inner)
    if kind is Literal:
        return type(value) in {type(choice) for choice in inner}  # which one, the pass says in its own words
    if kind is tuple:
        return isinstance(value, tuple) and _entries_fit(value, inner)
    if hint in {int, float}:
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    return kind is ClassVar or not isinstance(hint, type) or isinstance(value, hint)


def _entries_fit(value: tuple[object, ...], hints: tuple[Any, ...]) -> bool:
    if hints[-1:] == (Ellipsis,):
        return all(_fits(entry, hints[0]) for entry in value)
    return len(value) == len(hints) and all(map(_fits, value, hints))


def _shown(hint: Any) -> str:  # noqa: ANN401
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")
