"""Conversion of node arguments and other plain values to JSON and back, preserving their types.

`int`, `bool`, `str`, `None`, lists and finite floats are written directly. Any other value is an object with one key,
its kind: `{"tuple": [1, 2]}`, `{"dtype": "float32"}`, `{"node": "relu_1"}`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxsurgery.errors import RunError, SavingError, reason_of

MAX_DEPTH = 40
"""Maximum nesting depth of values."""
MAX_INTEGER = 10**1000
"""Upper bound for integers; Python refuses to print much longer ones."""

Plain = Any
"""A value that the json module can write."""


def _torch_names(kind: type) -> dict[Any, str]:
    return {value: name for name, value in vars(torch).items() if isinstance(value, kind)}


_DTYPES, _LAYOUTS, _FORMATS = (_torch_names(k) for k in (torch.dtype, torch.layout, torch.memory_format))
_BY_NAME: Mapping[str, Mapping[str, Any]] = {
    "dtype": {n: v for n, v in vars(torch).items() if isinstance(v, torch.dtype)},
    "layout": {n: v for n, v in vars(torch).items() if isinstance(v, torch.layout)},
    "memory_format": {n: v for n, v in vars(torch).items() if isinstance(v, torch.memory_format)},
}


def encoded(value: object, special: Callable[[object], Plain | None] = lambda _: None) -> Plain:
    """Convert `value` to JSON.

    Args:
        value: tuples, lists, dicts and slices of constants and of values that `special` handles.
        special: returns the JSON for values of other types, such as nodes; None for a value that it does not handle.

    Raises:
        SavingError: the value cannot be saved.
    """
    if value is None or type(value) in {bool, int, str} or (type(value) is float and math.isfinite(value)):
        return value
    if (found := special(value)) is not None:
        return found
    match value:
        case slice():
            return {"slice": [encoded(v, special) for v in (value.start, value.stop, value.step)]}
        case Mapping():
            return {"dict": [[encoded(k, special), encoded(v, special)] for k, v in value.items()]}
        case tuple() | list():
            return _sequence(value, special)
        case _:
            return _constant(value)


def _sequence(value: tuple[Any, ...] | list[Any], special: Callable[[object], Plain | None]) -> Plain:
    if hasattr(value, "_fields"):
        raise SavingError(
            f"a value of type {type(value).__name__}, a named tuple, cannot be saved; use a dict or tuple instead"
        )
    items = [encoded(v, special) for v in value]
    if isinstance(value, torch.Size):
        return {"size": items}
    return {"tuple": items} if isinstance(value, tuple) else items


def _constant(value: object) -> Plain:
    for kind, names in (("dtype", _DTYPES), ("layout", _LAYOUTS), ("memory_format", _FORMATS)):
        if value in names if isinstance(value, (torch.dtype, torch.layout, torch.memory_format)) else False:
            return {kind: names[value]}
    if isinstance(value, float):
        return {"float": repr(float(value))}
    if isinstance(value, torch.device):
        return {"device": str(value)}
    if value is ...:
        return {"ellipsis": True}
    if isinstance(value, complex):
        return {"complex": [repr(value.real), repr(value.imag)]}
    raise SavingError(
        f"a value of type {type(value).__module__}.{type(value).__qualname__} cannot be saved; use numbers, "
        "strings, tuples, lists, dicts or tensors instead"
    )


def decoded(plain: Plain, special: Mapping[str, Callable[[Any], Any]] | None = None, depth: int = 0) -> Any:  # noqa: ANN401
    """Convert JSON written by `encoded` back to the value.

    Args:
        plain: the JSON.
        special: constructors of the values that `encoded` passed to its own `special`, by kind.
        depth: current nesting depth.

    Raises:
        RunError: it is not valid JSON of this form.
    """
    if depth > MAX_DEPTH:
        raise RunError(f"damaged: values are nested deeper than {MAX_DEPTH}")
    if plain is None or type(plain) in {bool, float, str} or (type(plain) is int and abs(plain) < MAX_INTEGER):
        return plain
    if isinstance(plain, list):
        return [decoded(v, special, depth + 1) for v in plain]
    if not isinstance(plain, dict) or len(plain) != 1:
        raise RunError(f"damaged: {str(plain)[:60]!r} is not a value")
    [(kind, content)] = plain.items()
    try:
        return _decode_kind(kind, content, special, depth + 1)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"damaged: {str(plain)[:60]!r} is not a value: {reason_of(error)[:200]}") from error


def _decode_kind(kind: str, content: Any, special: Mapping[str, Callable[[Any], Any]] | None, depth: int) -> Any:  # noqa: ANN401
    if special and kind in special:
        return special[kind](_text(content))
    if kind in _BY_NAME:
        return _BY_NAME[kind][_text(content)]
    if kind in _SIMPLE:
        return _SIMPLE[kind](content)
    if not isinstance(content, list):
        raise TypeError("a list is expected")
    if kind == "dict":
        pairs = [(decoded(k, None, depth), decoded(v, special, depth)) for k, v in content]
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is duplicate")
        return found
    return _SEQUENCES[kind]([decoded(v, special, depth) for v in content])


def _text(content: object) -> str:
    if not isinstance(content, str):
        raise TypeError("a string is expected")
    return content


def _float(content: object) -> float:
    found = float(_text(content))
    if repr(found) != content:
        raise ValueError(f"{str(content)[:60]!r} is not the repr of a float")
    return found


def _complex(content: object) -> complex:
    if not isinstance(content, list) or len(content) != 2:
        raise TypeError("two floats are expected")
    return complex(_float(content[0]), _float(content[1]))


def _ellipsis(content: object) -> object:
    if content is not True:
        raise ValueError("it is not an ellipsis")
    return ...


def _slice(items: list[Any]) -> slice:
    start, stop, step = items
    return slice(start, stop, step)


_SIMPLE: Mapping[str, Callable[[Any], Any]] = {
    "float": _float,
    "complex": _complex,
    "ellipsis": _ellipsis,
    "device": lambda content: torch.device(_text(content)),
}
_SEQUENCES: Mapping[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "slice": _slice, "size": torch.Size}


def tensors_as(kept: dict[str, Tensor]) -> Callable[[object], Plain | None]:
    """Return a `special` for `encoded` that stores tensors in `kept` under consecutive numbers."""

    def special(value: object) -> Plain | None:
        if not isinstance(value, Tensor):
            return None
        name = str(len(kept))
        kept[name] = value.detach()
        return {"tensor": name}

    return special


def plain_numbers(value: Any) -> Any:  # noqa: ANN401 -- any plain value
    """Return `value` with NumPy values and tensors converted to Python numbers and lists."""
    if isinstance(value, Mapping):
        return {k: plain_numbers(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        items = [plain_numbers(v) for v in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, (Tensor, np.generic, np.ndarray)):
        return value.tolist()
    return value
