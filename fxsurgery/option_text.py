"""Text of values, and of the annotations that they must fit, in messages."""

import inspect
import reprlib
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from typing_extensions import override

from fxsurgery.argument_names import speaks_python

WIDEST = 63
"""Largest number of bits of an integer without its sign: what fits into a tensor, a seed or a file."""
_LONGEST = 80
"""Number of characters of a value that a message shows."""


class Constraint(ABC):
    """Constraint on a value apart from its type, as metadata of `Annotated`; its text completes "it must be ..."."""

    said: str = ""
    """Text after the value in a message, instead of "it must be" and the constraint; `{value}` is the value."""

    @override
    @abstractmethod
    def __str__(self) -> str: ...

    def about(self, value: object) -> str:
        """Return the text for a value that violates the constraint."""
        del value
        return str(self)


@dataclass(frozen=True)
class Wording(Constraint):
    """Custom text for a value that does not fit; adds no constraint."""

    said: str

    @override
    def __str__(self) -> str:
        return ""


def shown(value: object) -> str:
    """Return a value as a message shows it, however large it is.

    Example:
        >>> shown("a"), shown([1, object()]), shown(10**5000)
        ("'a'", '[1, <object>]', '<an integer of 16,610 bits>')
    """
    if isinstance(value, int) and value.bit_length() > 4 * WIDEST:  # Python refuses to print very long ones
        return f"<an integer of {value.bit_length():,} bits>"
    if value is None or isinstance(value, bool | int | float | str | bytes):
        text = repr(value) if speaks_python() or not isinstance(value, bool) else str(value).lower()
        return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    if isinstance(value, tuple | list | set | dict):
        return _Short().repr(value)
    return f"<{type_name(value)}>"


def type_name(value: object) -> str:
    """Return the type of a value as a message names it: `int`, `torch.Tensor`."""
    return _class_name(type(value))


def with_article(noun: str) -> str:
    """Return a noun with its indefinite article.

    Example:
        >>> with_article("OrderedDict"), with_article("list")
        ('an OrderedDict', 'a list')
    """
    return f"{'an' if noun[:1].lower() in set('aeiou') else 'a'} {noun}"


def class_fault(name: str, kind: type) -> str:
    """Return the message on a class that was passed in place of an instance of it.

    Args:
        name: subject of the sentence, such as the name of the argument.
        kind: the class.

    Example:
        >>> class_fault("callbacks", Constraint)
        'callbacks is the class Constraint; create an instance: Constraint()'
    """
    try:
        inspect.signature(kind).bind()
        arguments = ""
    except (TypeError, ValueError):
        arguments = "..."
    return f"{name} is the class {kind.__name__}; create an instance: {kind.__name__}({arguments})"


def written(hint: Any) -> str:  # noqa: ANN401 -- any annotation
    """Return an annotation as source code writes it."""
    return hint.__name__ if isinstance(hint, type) and not get_args(hint) else str(hint).replace("typing.", "")


def demand(hint: Any, value: object, *, is_bound: bool) -> str:  # noqa: ANN401 -- any annotation
    """Return the text for a value that does not fit an annotation: "it must be a whole number, at least 1".

    Args:
        hint: the annotation.
        value: does not fit it.
        is_bound: whether the value is of the right type, and breaks a constraint.

    Example:
        >>> demand(float | None, "a", is_bound=False)
        ': it must be a finite number or None'
    """
    wanted = expected(hint)
    if is_bound:
        known = constraints(hint)
        if said := next((one.said for one in known if one.said), ""):
            return said.replace("{value}", shown(value))
        wanted = " and ".join(one.about(value) for one in known) or wanted
    is_wide = "number" in wanted and isinstance(value, int) and value.bit_length() > WIDEST
    wide = f" of at most {WIDEST} bits" if is_wide else ""
    return f": it must be {wanted}{wide}"


def constraints(hint: Any) -> list[Constraint]:  # noqa: ANN401 -- any annotation
    """Return the constraints of an annotation, or of the one choice of a union that has some."""
    kind, inner = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return [one for one in inner[1:] if isinstance(one, Constraint)] or constraints(inner[0])
    if kind in {Union, types.UnionType}:
        return next((found for one in inner if (found := constraints(one))), [])
    return []


_WORDS: dict[Any, str] = {int: "a whole number", float: "a finite number", bool: "True or False", str: "a str"}
_TEXT_WORDS: dict[Any, str] = {
    bool: "true or false", str: "a text", Sequence: "a list", Mapping: "a table", dict: "a table",
}  # fmt: skip
"""The same where messages are about flags and config files."""
_KINDS: dict[Any, str] = {
    Sequence: "a list or tuple", Collection: "a collection", Iterable: "an iterable", Mapping: "a dict",
    Callable: "a function",
}  # fmt: skip


def expected(hint: Any) -> str:  # noqa: ANN401 -- any annotation
    """Return what fits an annotation, in words.

    Example:
        >>> expected(Literal["a", "b"] | int | None)
        "'a', 'b', a whole number or None"
    """
    return _either(list(_choices(hint)))


def _choices(hint: Any) -> Iterator[str]:  # noqa: ANN401 -- any annotation
    kind, inner = get_origin(hint), get_args(hint)
    if kind in {Union, types.UnionType}:
        yield from (text for one in inner if not (one is int and float in inner) for text in _choices(one))
    elif kind is Literal:
        yield from map(repr, inner)
    elif kind is Annotated and _bounds(hint):
        yield _bounded(hint)
    elif kind is Annotated:
        yield from _choices(inner[0])
    elif hint is None or hint is type(None):
        yield from ("None",) if speaks_python() else ()
    elif kind is tuple:
        yield f"a tuple, {written(hint)}" if speaks_python() else "a list"
    else:
        yield _expected_class(hint, kind, inner)


def _bounds(hint: Any) -> str:  # noqa: ANN401 -- any annotation
    """Return the text of the constraints next to a type, not within it."""
    return " and ".join(text for one in get_args(hint)[1:] if isinstance(one, Constraint) and (text := str(one)))


def _bounded(hint: Any) -> str:  # noqa: ANN401 -- any annotation
    base, bounds = get_args(hint)[0], _bounds(hint)
    optional = get_origin(base) in {Union, types.UnionType} and type(None) in get_args(base)
    choices = [one for one in get_args(base) if one is not type(None)] if optional else [base]
    plain, none = _either(list(map(expected, choices))), " or None" if optional and speaks_python() else ""
    return f"{plain}, {bounds}{none}" if choices == [int] else f"{bounds} ({plain}{none})"


def _expected_class(hint: Any, kind: Any, inner: tuple[Any, ...]) -> str:  # noqa: ANN401 -- any annotation
    if not speaks_python() and (word := _TEXT_WORDS.get(kind or hint)):
        return word
    if kind is type:
        return f"a subclass of {_class_name(inner[0])}"
    if kind in _KINDS:
        return _KINDS[kind]
    return _WORDS.get(hint) or with_article(_class_name(kind or hint))


def _either(choices: list[str]) -> str:
    unique = list(dict.fromkeys(choices))
    return unique[0] if len(unique) == 1 else f"{', '.join(unique[:-1])} or {unique[-1]}"


def _class_name(kind: Any) -> str:  # noqa: ANN401 -- a class, or what a class was made by
    name: str = getattr(kind, "__name__", str(kind))
    top = getattr(kind, "__module__", "").partition(".")[0]
    return f"{'torch.nn.' if kind.__module__.startswith('torch.nn') else 'torch.'}{name}" if top == "torch" else name


class _Short(reprlib.Repr):
    """Representation of containers, limited in depth, and their entries."""

    @override
    def repr1(self, x: object, level: int) -> str:
        return super().repr1(x, level) if isinstance(x, tuple | list | set | dict) and level > 0 else shown(x)
