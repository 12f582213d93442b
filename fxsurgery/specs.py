"""Parsing of `name(option=value,...)`: the texts of passes and of the steps of a deploy chain."""

import ast
import re
from collections.abc import Mapping
from typing import TypeVar

from fxsurgery.errors import SpecError, reason_of

T = TypeVar("T")


def parse_spec(spec: str, known: Mapping[str, type[T]], *, kind: str, example: str) -> T:
    """Return the value that `spec` describes. No part of `spec` is executed.

    Args:
        spec: the text.
        known: the types by name.
        kind: what a value is, for messages: `pass`.
        example: a text that is right, for messages.

    Raises:
        SpecError: `spec` names none of them, or gives it options that it does not take.

    Example:
        >>> from fractions import Fraction
        >>> parse_spec("ratio(numerator=1,denominator=2)", {"ratio": Fraction}, kind="ratio", example="ratio")
        Fraction(1, 2)
    """
    if not (match := re.fullmatch(r"([a-z0-9-]+)(\(.*\))?", spec)):
        raise SpecError(f"{spec!r} is not of the form name(option=value,...), such as {example}")
    name, options = match.groups()
    if name not in known:
        raise SpecError(f"no {kind} is named {name!r}; there are: {', '.join(sorted(known))}")
    try:
        call = ast.parse(f"_{options or '()'}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise SpecError(f"options in {spec!r} are given by name, such as {example}")
        return known[name](**{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
    except (SyntaxError, TypeError, ValueError) as error:
        raise SpecError(f"bad options in {spec!r}: {reason_of(error)}; write each value as Python does") from error
    except (RecursionError, MemoryError) as error:
        raise SpecError(f"options nested too deeply in {spec[:60]!r}...; give fewer levels") from error
