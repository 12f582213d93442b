"""Python code of constants, and expressions with their precedence."""

import keyword
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fxsurgery.errors import SavingError

ATOM, POWER, UNARY, NOT, LOOSE = 20, 18, 17, 6, 0


@dataclass(frozen=True)
class Code:
    """A Python expression; one with a higher precedence needs fewer parentheses."""

    text: str
    precedence: int = ATOM

    def within(self, precedence: int) -> str:
        """Return the text, in parentheses if it binds less tightly than `precedence`."""
        return self.text if self.precedence >= precedence else f"({self.text})"


Show = Callable[[Any], Code | None]
"""Returns the code of a value that is not a constant, such as a node; None for any other."""


def to_code(value: Any, special: Show = lambda _: None) -> Code:  # noqa: ANN401 -- any argument of a node
    """Return the code of `value`.

    Raises:
        SavingError: it cannot be written as code.
    """
    if (found := special(value)) is not None:
        return found
    if isinstance(value, (tuple, list, Mapping, slice)):
        return Code(_structure(value, special))
    if value is None or isinstance(value, bool):
        return Code(repr(value))
    if isinstance(value, str):
        return Code(text(value))
    return _number(value) if isinstance(value, (int, float)) else _torch_constant(value)


def text(value: str) -> str:
    """Return a string literal, in double quotes if it needs no escapes, else its `repr`."""
    exact = str.__str__(value)
    return f'"{exact}"' if exact.isprintable() and {'"', "\\"}.isdisjoint(exact) else repr(exact)


def name(value: object) -> str:
    """Return an identifier as code.

    Raises:
        SavingError: it is not an identifier.
    """
    if not isinstance(value, str) or not value.isidentifier() or keyword.iskeyword(value):
        raise SavingError(f"{str(value)[:60]!r} cannot be written as code: it is not an identifier; use `save` instead")
    return str.__str__(value)


def _structure(value: Any, special: Show) -> str:  # noqa: ANN401 -- a tuple, list, dict or slice
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{to_code(k, special).text}: {to_code(v, special).text}' for k, v in value.items())}}}"
    if isinstance(value, slice):
        return f"slice({', '.join(to_code(v, special).text for v in (value.start, value.stop, value.step))})"
    items = [to_code(v, special).text for v in value]
    if isinstance(value, list):
        return f"[{', '.join(items)}]"
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def _number(value: float) -> Code:
    if not math.isfinite(value):
        return Code(f"float({text(float.__repr__(value))})")
    plain = int.__repr__(value) if isinstance(value, int) else float.__repr__(value)
    return Code(plain.replace("e+", "e"), UNARY if plain.startswith("-") else ATOM)


def _torch_constant(value: object) -> Code:
    if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)):
        return Code(str(value))
    if isinstance(value, torch.device):
        return Code(f"torch.device({text(str(value))})")
    if value is ...:
        return Code("...")
    if isinstance(value, complex):
        return Code(f"complex({value.real!r}, {value.imag!r})")
    raise SavingError(f"a value of type {type(value).__name__} cannot be written as code; use `save` instead")


def index(value: Any, special: Show) -> str:  # noqa: ANN401 -- any index
    """Return the code of `value` as an index, without brackets."""
    if isinstance(value, tuple) and value:
        items = [_one_index(v, special) for v in value]
        return f"{items[0]}," if len(items) == 1 else ", ".join(items)
    return _one_index(value, special)


def _one_index(value: Any, special: Show) -> str:  # noqa: ANN401 -- any index
    if not isinstance(value, slice):
        return to_code(value, special).text
    bounds = [None if v is None else to_code(v, special) for v in (value.start, value.stop, value.step)]
    # A formatter puts spaces around slice bounds that are not simple names or numbers.
    simple = all(b is None or b.text.lstrip("-").replace("_", "").isalnum() for b in bounds)
    start, stop, step = ("" if b is None else b.text for b in bounds)
    if simple:
        return f"{start}:{stop}" + (f":{step}" if step else "")
    return f"{start} : {stop}".strip(" ") + (f" : {step}" if step else "")
