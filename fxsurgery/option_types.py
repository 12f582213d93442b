"""Checks of arguments against the types and bounds of their annotations, before anything runs.

One vocabulary for functions (`checked`), dataclasses (`check_fields`) and passes (`check_options`). Bounds stand in the
annotation: `Annotated[int, Range(least=1)]`. A number must be finite, `bool` is no number, and a `str` is no sequence.
"""

import functools
import inspect
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ParamSpec, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import annotated_types
import torch
from pydantic import AllowInfNan
from torch import nn
from typing_extensions import override

from fxsurgery.calls import bound
from fxsurgery.errors import SpecError, SurgeryError
from fxsurgery.option_text import Constraint, class_fault, demand, shown, type_name, with_article, written
from fxsurgery.type_check import BOUNDS, classes_in, faults

P = ParamSpec("P")
R = TypeVar("R")

MOST_UNITS = 2**16
"""Largest number of channels or units in one move; larger numbers are mistakes, and would exhaust the memory."""


@dataclass(frozen=True, kw_only=True)
class Range(Constraint, annotated_types.GroupedMetadata):
    """Bounds of a number; `None` is no bound.

    Example:
        >>> str(Range(above=0, most=1))
        'greater than 0 and at most 1'
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

    @override
    def __iter__(self) -> Iterator[object]:
        """Yield the bounds as pydantic's constraints."""
        if self.infinite:
            yield AllowInfNan(allow_inf_nan=True)
        bounds = {
            annotated_types.Ge: self.least, annotated_types.Gt: self.above, annotated_types.Le: self.most,
            annotated_types.Lt: self.below,
        }  # fmt: skip
        yield from (kind(bound) for kind, bound in bounds.items() if bound is not None)

    @override
    def __str__(self) -> str:
        if None not in {self.least, self.most}:
            return f"from {self.least:,} to {self.most:,}"
        words = {"at least": self.least, "greater than": self.above, "at most": self.most, "less than": self.below}
        return " and ".join(
            f"{what} {_bound(bound)}" for what, bound in words.items() if bound is not None and not _is_absurd(bound)
        )

    @override
    def about(self, value: object) -> str:
        """Return the text for a value, with a bound that no sensible value reaches if this one does."""
        limit = self.below if self.most is None else self.most
        if limit is not None and _is_absurd(limit) and isinstance(value, int | float) and value >= limit:
            return f"less than {limit:,}"
        return str(self)


@dataclass(frozen=True)
class _PathText(Constraint, annotated_types.GroupedMetadata):
    """Constraint of a string or `Path` that a file system accepts."""

    @override
    def __iter__(self) -> Iterator[object]:
        yield annotated_types.Predicate(_is_path)

    @override
    def __str__(self) -> str:
        return "not empty and without null bytes"


def _is_path(value: str | Path) -> bool:
    return str(value) != "" and "\0" not in str(value)


FilePath: TypeAlias = Annotated[str | Path, _PathText()]
"""A path to write to or read from."""
OptionalFilePath: TypeAlias = FilePath | None
Count: TypeAlias = Annotated[int, Range(least=1, below=2**31)]
"""A positive number of things."""
Seed: TypeAlias = Annotated[int, Range(least=0, below=2**63)]
Fraction: TypeAlias = Annotated[float, Range(least=0, most=1)]
"""A fraction from 0 to 1."""


def checked(
    error: type[SurgeryError] = SurgeryError, *, apart: tuple[str, ...] = (), **others: type[SurgeryError]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the arguments of a function against its annotations at each call, before it runs.

    Args:
        error: what a wrong argument raises.
        apart: arguments that the function checks itself.
        others: what particular arguments raise instead, by name.

    Raises:
        ArgumentError: at a call, an argument does not exist or is missing.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature, owner = inspect.signature(function), function.__qualname__.rpartition("<locals>.")[2]
        hints = functools.cache(lambda: get_type_hints(function, include_extras=True))  # names may be bound later

        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = bound(signature, owner, args, kwargs)
            for name, value in given.arguments.items():
                if name in hints():
                    check = functools.partial(
                        _unlike if name in apart else _checked, owner=owner, error=others.get(name, error)
                    )
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

    NumPy numbers become Python numbers, so that they are saved and compared as such.

    Args:
        owner: an instance, frozen or not.
        error: what a wrong field raises.
        name: what messages begin with, maybe nothing; the name of its class unless given.
        others: what particular fields raise instead, by name.
    """
    hints, owned = hints_of(type(owner)), type(owner).__name__ if name is None else name
    for field in (field for field in fields(owner) if field.init):
        value = getattr(owner, field.name)
        kind = others.get(field.name, error)
        plain = _checked(field.name, value, hints[field.name], owner=owned, error=kind)
        if plain is not value:
            object.__setattr__(owner, field.name, plain)


def check_options(owner: Any) -> None:  # noqa: ANN401 -- any pass
    """Refuse an option of a pass whose value is of another type, or out of the bounds, that it is declared with.

    Raises:
        SpecError: it names the option, what was given, and what is wanted.
    """
    hints = hints_of(type(owner))
    for option in fields(owner):
        value, hint = getattr(owner, option.name), hints[option.name]
        wrong = faults(value, hint)
        if wrong - BOUNDS:
            bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
            raise SpecError(
                f"{owner.name}: {option.name}={shown(value)} is not of type {written(bare)}; pass one that is"
            ).at(option.name)
        if wrong:
            raise SpecError(f"{owner.name}: {option.name}={shown(value)}{demand(hint, value, is_bound=True)}").at(
                option.name
            )


_known_hints: dict[type, Mapping[str, Any]] = {}


def hints_of(owner: type[Any]) -> Mapping[str, Any]:
    """Return the annotations of a class, with their constraints."""
    if owner not in _known_hints:
        _known_hints[owner] = get_type_hints(owner, include_extras=True)
    return _known_hints[owner]


def _by_kind(parameter: inspect.Parameter, value: Any, hint: Any, check: Callable[..., Any]) -> Any:  # noqa: ANN401
    if parameter.kind is parameter.VAR_POSITIONAL:
        return tuple(check(parameter.name, one, hint) for one in value)
    if parameter.kind is parameter.VAR_KEYWORD:
        return {name: check(name, one, hint) for name, one in value.items()}
    return check(parameter.name, value, hint)


def _unlike(name: str, value: Any, hint: Any, *, owner: str, error: type[SurgeryError]) -> Any:  # noqa: ANN401
    """Return a value unless it is a class in place of an instance, or no module where the annotation takes one."""
    kinds = classes_in(hint)
    fault = class_fault(name, value) if isinstance(value, type) and issubclass(value, kinds) else ""
    if nn.Module in kinds and not isinstance(value, kinds):
        fault = fault or _module_fault(name, value)
    if fault:
        raise error(f"{owner}: {fault}" if owner else fault).at(name)
    return value


def _module_fault(name: str, value: object) -> str:
    """Return the message on something that a module can be made from, in place of the module."""
    what = with_article(type_name(value))
    if type(value).__name__ == "ExportedProgram":
        return f"{name} is {what}, not a torch.nn.Module; pass its .module()"
    if isinstance(value, Mapping) and all(isinstance(x, torch.Tensor) for x in value.values()):
        return f"{name} is {what}, a state dict; create the model, call its load_state_dict with it, and pass it"
    return ""


def _checked(name: str, value: Any, hint: Any, *, owner: str, error: type[SurgeryError]) -> Any:  # noqa: ANN401
    if not (wrong := faults(value, hint)):
        return value
    plain = _plain(value)
    if plain is not value and not (wrong := faults(plain, hint)):
        return plain
    _unlike(name, value, hint, owner=owner, error=error)
    prefix = f"{owner}: " if owner else ""
    raise error(f"{prefix}{name}={shown(value)}{demand(hint, value, is_bound=wrong <= BOUNDS)}").at(name)


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a NumPy number as a Python number, and a device as its name."""
    if isinstance(value, torch.device):
        return str(value)
    if isinstance(value, int | float | complex) or not isinstance(value, numbers.Number):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value


def _is_absurd(bound: float) -> bool:
    """Return whether a bound is far beyond all sensible values, and only keeps numbers within a file format."""
    return bound >= 10**15 and not (isinstance(bound, int) and bound.bit_count() == 1)


def _bound(bound: float) -> str:
    exponent = bound.bit_length() - 1 if isinstance(bound, int) else 0
    return f"2**{exponent}" if isinstance(bound, int) and bound > 2**20 and bound == 2**exponent else f"{bound:,}"
