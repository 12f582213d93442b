"""Calls that do not fit the signature of a function or a class: one error that names the argument and the one meant."""

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fxsurgery.errors import ArgumentError
from fxsurgery.suggestions import hint

T = TypeVar("T")

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (*_POSITIONAL, inspect.Parameter.KEYWORD_ONLY)


def bound(
    signature: inspect.Signature, owner: str, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> inspect.BoundArguments:
    """Bind the arguments of a call to a signature.

    Args:
        signature: of the function that is called.
        owner: what messages call the function.
        args: the positional arguments.
        kwargs: the arguments by name.

    Raises:
        ArgumentError: an argument does not exist, is missing, is given twice, or is one positional argument too many.
    """
    try:
        return signature.bind(*args, **kwargs)
    except TypeError:
        pass
    raise _misfit(signature, owner, args, kwargs)


def _misfit(signature: inspect.Signature, owner: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> ArgumentError:
    parameters = {name: p for name, p in signature.parameters.items() if name != "self"}
    by_name = [name for name, p in parameters.items() if p.kind not in {p.POSITIONAL_ONLY, p.VAR_POSITIONAL}]
    for name in kwargs:
        if name not in by_name:
            return ArgumentError(f"{owner}: there is no argument {name}=; {hint(name, by_name)}").at(name)
    places = [name for name, p in signature.parameters.items() if p.kind in _POSITIONAL]
    if len(args) > len(places):
        return _too_many(owner, [name for name in places if name != "self"], list(parameters), len(args) - len(places))
    if twice := [name for name in places[: len(args)] if name in kwargs]:
        return ArgumentError(f"{owner}: {twice[0]}= is given by position and by name; pass it once").at(twice[0])
    needed = [name for name, p in parameters.items() if p.default is p.empty and p.kind in _NAMED]
    given = {*places[: len(args)], *kwargs}
    missing = next(name for name in needed if name not in given)
    line = ", ".join(name if parameters[name].kind in _POSITIONAL else f"{name}=..." for name in needed)
    return ArgumentError(f"{owner}: {missing}= is missing; call {owner}({line})").at(missing)


def _too_many(owner: str, places: Sequence[str], names: Sequence[str], more: int) -> ArgumentError:
    by_position = f"only {', '.join(places)} by position" if places else "no positional arguments"
    example = next((name for name in names if name not in places), "")
    others = ("the others" if more > 1 else "the other") if places else ("them" if more > 1 else "it")
    remedy = f"pass {others} by name, such as {example}=..." if example else f"leave {others} out"
    return ArgumentError(f"{owner}(...) takes {by_position}; {remedy}")


def checked_construction(kind: type[T]) -> type[T]:
    """Raise `ArgumentError` where a class is constructed with arguments that its fields do not have.

    A class decorator, written above `@dataclass`. A subclass needs one of its own.

    Example:
        >>> from dataclasses import dataclass
        >>> @checked_construction
        ... @dataclass
        ... class Point:
        ...     width: int = 0
        >>> Point(witdh=3)
        Traceback (most recent call last):
        fxsurgery.errors.ArgumentError: Point: there is no argument witdh=; did you mean width=?
    """
    construct = kind.__init__
    signature = inspect.signature(construct)

    @functools.wraps(construct)
    def checked_init(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 -- whatever the fields are
        bound(signature, type(self).__name__, (self, *args), kwargs)
        construct(self, *args, **kwargs)

    kind.__init__ = checked_init  # type: ignore[method-assign]
    return kind
