"""Arguments checked against the types and bounds that their annotations declare, before anything runs.

One vocabulary for functions (`checked`), dataclasses (`check_fields`) and passes (`check_options`). Bounds stand in the
annotation: `Annotated[int, Range(least=1)]`. A number must be finite, `bool` is no number, and a `str` is no sequence.
"""

import functools
import inspect
import math
import numbers
import reprlib
import types
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    runtime_checkable,
)

import torch
from typing_extensions import override

from fxsurgery.errors import SpecError, SurgeryError

P = ParamSpec("P")
R = TypeVar("R")

_LONGEST = 80
"""Characters of a value that a message shows."""
_WIDEST = 63
"""Bits of an integer, its sign aside: what fits into a tensor, a seed or a file."""
MOST_UNITS = 2**16
"""Channels or units that one move may ask for: more are a slip, and would fill the memory."""


@runtime_checkable
class Constraint(Protocol):
    """What must hold of a value beside its type, as metadata of `Annotated`; its text completes "it must be a ..."."""

    def holds(self, value: Any) -> bool:  # noqa: ANN401
        """Whether it holds of a value of the annotated type."""


@dataclass(frozen=True, kw_only=True)
class Range:
    """Bounds of a number; `None` is no bound.

    Example:
        >>> Range(least=1).holds(0), str(Range(above=0, most=1))
        (False, 'greater than 0 and at most 1')
        >>> str(Range(least=0, most=1))
        'from 0 to 1'
    """

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    infinite: bool = False
    """Whether infinity counts as a number."""
    said: str = ""
    """What follows `name=value` in a message, in place of the bounds."""

    def holds(self, value: Any) -> bool:  # noqa: ANN401
        """Whether a number lies within the bounds; `None`, where the type admits it, does."""
        if value is None:
            return True
        return (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
            and (self.below is None or value < self.below)
        )

    @override
    def __str__(self) -> str:
        if None not in {self.least, self.most}:
            return f"from {self.least:,} to {self.most:,}"
        words = {"at least": self.least, "greater than": self.above, "at most": self.most, "less than": self.below}
        return " and ".join(f"{what} {_bound(bound)}" for what, bound in words.items() if bound is not None)


@dataclass(frozen=True)
class _PathText:
    """What a file system takes as a path."""

    def holds(self, value: Any) -> bool:  # noqa: ANN401
        """Whether the path is not empty and has no null byte."""
        return value is None or (str(value) != "" and "\0" not in str(value))

    @override
    def __str__(self) -> str:
        return "not empty and without null bytes"


FilePath: TypeAlias = Annotated[str | Path, _PathText()]
"""A path to write to or read from."""
OptionalFilePath: TypeAlias = Annotated[str | Path | None, _PathText()]
Count: TypeAlias = Annotated[int, Range(least=1, below=2**31)]
"""How many of something."""
Seed: TypeAlias = Annotated[int, Range(least=0, below=2**63)]
Share: TypeAlias = Annotated[float, Range(least=0, most=1)]
"""A part of a whole."""


def checked(
    error: type[SurgeryError] = SurgeryError, *, apart: tuple[str, ...] = (), **others: type[SurgeryError]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the arguments of a function against its annotations at each call, before it runs.

    Args:
        error: what a wrong argument raises.
        apart: arguments that the function checks itself.
        others: what particular arguments raise instead, by name.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature, owner = inspect.signature(function), function.__qualname__.rpartition("<locals>.")[2]
        hints = functools.cache(lambda: get_type_hints(function, include_extras=True))  # names may be bound later

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = signature.bind(*args, **kwargs)
            for name, value in given.arguments.items():
                if name in hints() and name not in apart:
                    check = functools.partial(_checked, owner=owner, error=others.get(name, error))
                    given.arguments[name] = _by_kind(signature.parameters[name], value, hints()[name], check)
            return function(*given.args, **given.kwargs)

        return call

    return decorate


def check_fields(
    owner: Any,  # noqa: ANN401 -- any dataclass
    error: type[SurgeryError],
    *,
    name: str | None = None,
    **others: type[SurgeryError],
) -> None:
    """Refuse a field of a dataclass whose value is of another type, or out of the bounds, that it is declared with.

    Numbers of numpy become Python's, so that they are saved and compared as such.

    Args:
        owner: an instance, frozen or not.
        error: what a wrong field raises.
        name: what messages begin with, maybe nothing; the name of its class unless given.
        others: what particular fields raise instead, by name.
    """
    hints, owned = _hints(type(owner)), type(owner).__name__ if name is None else name
    for field in fields(owner):
        value = getattr(owner, field.name)
        kind = others.get(field.name, error)
        plain = _checked(field.name, value, hints[field.name], owner=owned, error=kind)
        if plain is not value:
            object.__setattr__(owner, field.name, plain)


def check_options(owner: Any) -> None:  # noqa: ANN401 -- any pass
    """Refuse an option of a pass whose value is of another type, or out of the bounds, that it is declared with.

    Which of several texts an option takes is left to the pass.

    Raises:
        SpecError: it names the option, what was given, and what is wanted.
    """
    hints = _hints(type(owner))
    for option in fields(owner):
        value, hint = getattr(owner, option.name), hints[option.name]
        bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
        if not _fits(value, bare, closed=False):
            raise SpecError(
                f"{owner.name}: {option.name}={shown(value)} is not of type {_written(bare)}; pass one that is"
            )
        if not _fits(value, hint, closed=False):
            raise SpecError(_misfit(owner.name, option.name, value, hint))


def type_name(value: object) -> str:
    """The type of a value as a message names it: `int`, `torch.Tensor`."""
    return _class_name(type(value))


_known_hints: dict[type, dict[str, Any]] = {}


def _hints(owner: type[Any]) -> dict[str, Any]:
    if owner not in _known_hints:
        _known_hints[owner] = get_type_hints(owner, include_extras=True)
    return _known_hints[owner]


def _by_kind(parameter: inspect.Parameter, value: Any, hint: Any, check: Callable[..., Any]) -> Any:  # noqa: ANN401
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple(check(parameter.name, one, hint) for one in value)
    if parameter.kind is parameter.VAR_KEYWORD:
        return {name: check(name, one, hint) for name, one in value.items()}
    return check(parameter.name, value, hint)


def _checked(name: str, value: Any, hint: Any, *, owner: str, error: type[SurgeryError]) -> Any:  # noqa: ANN401
    if _fits(value, hint):
        return value
    if _fits(plain := _plain(value), hint):
        return plain
    raise error(_misfit(owner, name, value, hint))


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Numpy's numbers as Python's, and a device as its name."""
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, int | float | complex) or not isinstance(value, numbers.Number):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _misfit(owner: str, name: str, value: object, hint: Any) -> str:  # noqa: ANN401
    prefix, wanted = f"{owner}: " if owner else "", _expected(hint)
    if get_origin(hint) is Annotated and _fits(_plain(value), get_args(hint)[0]):
        wanted = _bounds(hint)
        if said := next((one.said for one in get_args(hint)[1:] if isinstance(one, Range) and one.said), ""):
            return f"{prefix}{name}={shown(value)}{said}"
    wide = f" of at most {_WIDEST} bits" if isinstance(value, int) and value.bit_length() > _WIDEST else ""
    return f"{prefix}{name}={shown(value)}: it must be {wanted}{wide}"


def shown(value: object) -> str:
    """A value as a message shows it, however large it is."""
    if isinstance(value, int) and value.bit_length() > 4 * _WIDEST:  # Python refuses to print very long ones
        return f"<an integer of {value.bit_length():,} bits>"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        text = repr(value)
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    if isinstance(value, tuple | list | set | dict):
        return _Short().repr(value)
    return f"<{type_name(value)}>"


class _Short(reprlib.Repr):
    """Containers, some levels deep, and what they hold."""

    @override
    def repr1(self, x: object, level: int) -> str:
        return super().repr1(x, level) if isinstance(x, tuple | list | set | dict) and level > 0 else shown(x)


def _fits(value: Any, hint: Any, *, closed: bool = True) -> bool:  # noqa: ANN401
    """Whether a value is as an annotation says; unless `closed`, a `Literal` takes any value of its types."""
    fits = functools.partial(_fits, closed=closed)
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        known = [one for one in inner[1:] if isinstance(one, Constraint)]
        is_infinite = isinstance(value, float) and math.isinf(value)
        admitted = is_infinite and any(isinstance(one, Range) and one.infinite for one in known)
        return (admitted or fits(value, inner[0])) and all(one.holds(value) for one in known)
    if kind in {Union, types.UnionType}:
        return any(fits(value, one) for one in inner)
    if kind is Literal:
        return any(type(value) is type(one) and (not closed or value == one) for one in inner)
    if hint is None or hint is type(None):
        return value is None
    if hint in {int, float}:
        return _is_number(value, hint)
    return _is_instance(value, kind, inner, fits) if kind is not None else _is_plainly(value, hint)


def _is_plainly(value: Any, hint: Any) -> bool:  # noqa: ANN401
    if getattr(hint, "_is_protocol", False) and not getattr(hint, "_is_runtime_protocol", False):
        return True  # which methods it has, nobody can tell
    return hint is Any or not isinstance(hint, type) or isinstance(value, hint)


def _is_number(value: Any, hint: type) -> bool:  # noqa: ANN401
    if isinstance(value, bool) or not isinstance(value, (int, hint)):
        return False
    if isinstance(value, int):
        return value.bit_length() <= _WIDEST
    return isinstance(value, float) and math.isfinite(value)


def _is_instance(value: Any, kind: Any, inner: tuple[Any, ...], fits: Callable[[Any, Any], bool]) -> bool:  # noqa: ANN401
    if kind is ClassVar:
        return True
    if kind is type:
        return isinstance(value, type) and issubclass(value, inner[0])
    if kind is tuple:
        return isinstance(value, tuple) and _entries_fit(value, inner, fits)
    if not isinstance(value, kind):
        return False
    if kind in {Sequence, Collection, Iterable}:
        is_text = isinstance(value, str | bytes | bytearray)
        return not is_text and (kind is Iterable or all(fits(entry, inner[0]) for entry in value))
    return kind is not Mapping or all(fits(key, inner[0]) for key in value)


def _entries_fit(value: tuple[Any, ...], hints: tuple[Any, ...], fits: Callable[[Any, Any], bool]) -> bool:
    if hints[-1:] == (Ellipsis,):
        return all(fits(entry, hints[0]) for entry in value)
    return len(value) == len(hints) and all(map(fits, value, hints))


def _bounds(hint: Any) -> str:  # noqa: ANN401
    return " and ".join(str(one) for one in get_args(hint)[1:] if isinstance(one, Constraint))


_WORDS: dict[Any, str] = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a str"}
_KINDS: dict[Any, str] = {
    Sequence: "a list or tuple", Collection: "a collection", Iterable: "an iterable", Mapping: "a dict",
    Callable: "a function",
}  # fmt: skip


def _expected(hint: Any) -> str:  # noqa: ANN401
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        bounds = _bounds(hint)
        optional = get_origin(inner[0]) in {Union, types.UnionType} and type(None) in get_args(inner[0])
        base = [one for one in get_args(inner[0]) if one is not type(None)] if optional else [inner[0]]
        plain, none = _either(list(map(_expected, base))), " or None" if optional else ""
        return f"{plain}, {bounds}{none}" if base == [int] else f"{bounds} ({plain}{none})"
    if kind in {Union, types.UnionType}:
        return _either([_expected(one) for one in inner])
    if kind is Literal:
        return " or ".join(map(str, inner))
    if hint is None or hint is type(None):
        return "None"
    if kind is tuple:
        return f"a tuple, {_written(hint)}"
    return _expected_class(hint, kind, inner)


def _expected_class(hint: Any, kind: Any, inner: tuple[Any, ...]) -> str:  # noqa: ANN401
    if kind is type:
        return f"a subclass of {_class_name(inner[0])}"
    if kind in _KINDS:
        return _KINDS[kind]
    return _WORDS.get(hint) or f"a {_class_name(kind or hint)}"


def _written(hint: Any) -> str:  # noqa: ANN401
    """An annotation as it is written."""
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def _either(choices: list[str]) -> str:
    unique = list(dict.fromkeys(choices))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"


def _class_name(kind: Any) -> str:  # noqa: ANN401
    name: str = getattr(kind, "__name__", str(kind))
    top = getattr(kind, "__module__", "").partition(".")[0]
    return f"{'torch.nn.' if kind.__module__.startswith('torch.nn') else 'torch.'}{name}" if top == "torch" else name


def _bound(bound: float) -> str:
    exponent = bound.bit_length() - 1 if isinstance(bound, int) else 0
    return f"2**{exponent}" if isinstance(bound, int) and bound > 2**20 and bound == 2**exponent else f"{bound:,}"
