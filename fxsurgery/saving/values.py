"""Node arguments and other plain values as JSON, and back, each of the type that it had.

`int`, `bool`, `str`, `None`, lists and finite floats are themselves; anything else is an object of one key, its kind:
`{"tuple": [1, 2]}`, `{"dtype": "float32"}`, `{"node": "relu_1"}`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxsurgery.errors import RunError, SavingError, reason_of

DEEPEST = 40
"""How far values may nest."""
LARGEST = 10**1000
"""How far integers may go: Python refuses to write much longer ones."""

Plain = Any
"""What the json module writes."""


def _torch_names(kind: type) -> dict[Any, str]:
    return {value: name for name, value in vars(torch).items() if isinstance(value, kind)}


_DTYPES, _LAYOUTS, _FORMATS = (_torch_names(k) for k in (torch.dtype, torch.layout, torch.memory_format))
_BY_NAME: Mapping[str, Mapping[str, Any]] = {
    "dtype": {n: v for n, v in vars(torch).items() if isinstance(v, torch.dtype)},
    "layout": {n: v for n, v in vars(torch).items() if isinstance(v, torch.layout)},
    "memory_format": {n: v for n, v in vars(torch).items() if isinstance(v, torch.memory_format)},
}


def encoded(value: object, special: Callable[[object], Plain | None] = lambda _: None) -> Plain:
    """`value` as JSON.

    Args:
        value: tuples, lists, dicts and slices of constants, and of what `special` knows.
        special: gives the JSON of a value of other types, such as a node; `None` for what it does not know.

    Raises:
        SavingError: there is no way to write it.
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
            f"a {type(value).__name__} cannot be written: named tuples are known to Python alone; use a dict or tuple "
            "instead"
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
        f"a value of type {type(value).__module__}.{type(value).__qualname__} cannot be written; use numbers, "
        "strings, tuples, lists, dicts or tensors instead"
    )


def decoded(plain: Plain, special: Mapping[str, Callable[[Any], Any]] | None = None, depth: int = 0) -> Any:  # noqa: ANN401
    """What `encoded` wrote.

    Args:
        plain: the JSON.
        special: by kind: what makes the value of what stands there.
        depth: how deep in another value it is.

    Raises:
        RunError: it is no such JSON.
    """
    if depth > DEEPEST:
        raise RunError(f"damaged: values nest deeper than {DEEPEST}")
    if plain is None or type(plain) in {bool, float, str} or (type(plain) is int and abs(plain) < LARGEST):
        return plain
    if isinstance(plain, list):
        return [decoded(v, special, depth + 1) for v in plain]
    if not isinstance(plain, dict) or len(plain) != 1:
        raise RunError(f"damaged: {str(plain)[:60]!r} is no value")
    [(kind, content)] = plain.items()
    try:
        return _made(kind, content, special, depth + 1)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"damaged: {str(plain)[:60]!r} is no value: {reason_of(error)[:200]}") from error


def _made(kind: str, content: Any, special: Mapping[str, Callable[[Any], Any]] | None, depth: int) -> Any:  # noqa: ANN401
    if special and kind in special:
        return special[kind](_text(content))
    if kind in _BY_NAME:
        return _BY_NAME[kind][_text(content)]
    if kind in _SIMPLE:
        return _SIMPLE[kind](content)
    if not isinstance(content, list):
        raise TypeError("a list is wanted")
    if kind == "dict":
        pairs = [(decoded(k, None, depth), decoded(v, special, depth)) for k, v in content]
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key stands twice")
        return found
    return _SEQUENCES[kind]([decoded(v, special, depth) for v in content])


def _text(content: object) -> str:
    if not isinstance(content, str):
        raise TypeError("a string is wanted")
    return content


def _float(content: object) -> float:
    found = float(_text(content))
    if repr(found) != content:
        raise ValueError(f"no float is written as {str(content)[:60]!r}")
    return found


def _complex(content: object) -> complex:
    if not isinstance(content, list) or len(content) != 2:
        raise TypeError("two floats are wanted")
    return complex(_float(content[0]), _float(content[1]))


def _ellipsis(content: object) -> object:
    if content is not True:
        raise ValueError("it is no ellipsis")
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
    """For `encoded`: tensors go to `kept`, under numbers."""

    def special(value: object) -> Plain | None:
        if not isinstance(value, Tensor):
            return None
        name = str(len(kept))
        kept[name] = value.detach()
        return {"tensor": name}

    return special


def plain_numbers(value: Any) -> Any:  # noqa: ANN401 -- any plain value
    """`value` with the numbers of NumPy and of tensors as Python's."""
    if isinstance(value, Mapping):
        return {k: plain_numbers(v) for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        items = [plain_numbers(v) for v in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, (Tensor, np.generic, np.ndarray)):
        return value.tolist()
    return value
