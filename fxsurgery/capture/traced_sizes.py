"""Numbers that record how forward computes them from tensor sizes.

While a model is recorded, `x.shape` returns `TracedInt`s. Python computations with them become nodes of the graph, so
`x.view(n, h * w)` holds for every `h` and `w`. `fxsurgery.capture.size_tape` records them, and creates a guard where
Python needs the plain value.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol, Self, TypeGuard

import numpy as np
import torch
from torch import fx
from torch.utils import _pytree as pytree
from typing_extensions import override


class Tape(Protocol):
    """Interface of the tape that traced numbers are recorded on."""

    is_open: bool

    def compute(self, function: Callable[..., Any], *operands: Any) -> Any:
        """Return `function(*operands)` as a traced number."""

    def decide(self, function: Callable[..., Any], *operands: Any) -> bool:
        """Return the truth value of a comparison and record it as a branch guard."""

    def pin(self, number: "Traced") -> Any:
        """Return the plain value of `number` and record it as an exact guard."""

    def format_value(self, number: "Traced") -> Any:
        """Return the plain value of `number` for use in a text, and record a text guard."""


def to_builtin(value: Any) -> Any:
    """Return a number as a builtin int or float if its type is derived from one (NumPy floats, IntEnum members)."""
    if isinstance(value, float):
        return float(value)
    return int(value) if isinstance(value, int) and not isinstance(value, bool) else value


def is_traced(value: object) -> "TypeGuard[Traced]":
    """Return True if `value` is a traced number."""
    return type(value) is TracedInt or type(value) is TracedFloat


def untraced(value: Any) -> Any:
    """Return `value` with traced numbers in it replaced by plain ones; records no guard."""
    if is_traced(value):
        return value.value_of
    if type(value) is slice:
        return slice(untraced(value.start), untraced(value.stop), untraced(value.step))
    if type(value) is torch.Size:
        return torch.Size([untraced(v) for v in value])
    if type(value) in {tuple, list}:
        return type(value)(map(untraced, value))
    if type(value) is dict:
        return {k: untraced(v) for k, v in value.items()}
    return pytree.tree_map(_plain_leaf, value) if type(value) in pytree.SUPPORTED_NODES else value


def _plain_leaf(leaf: Any) -> Any:
    return untraced(leaf) if is_traced(leaf) or type(leaf) is slice else leaf


class Traced:
    """Common base of traced ints and floats; they behave like plain numbers of their type."""

    value_of: Any
    node_of: fx.Node
    tape: Tape
    plain_type: type

    def __init__(self, value: Any, node: fx.Node, tape: Tape) -> None:
        self.value_of, self.node_of, self.tape = value, node, tape

    @property  # type: ignore[misc]
    @override
    def __class__(self) -> type:
        """The plain type, so that `isinstance(n, int)` holds as usual."""
        return self.plain_type

    @property
    def node(self) -> Any:
        """The `SymNode` that torch's C++ code reads the value from."""
        return _GuardingNode(self)

    def __bool__(self) -> bool:
        return self.tape.decide(operator.ne, self, 0)

    def __float__(self) -> float:
        return float(self.tape.pin(self))

    @override
    def __hash__(self) -> int:
        return hash(self.tape.pin(self))

    @override
    def __repr__(self) -> str:
        return repr(self.tape.format_value(self))

    @override
    def __str__(self) -> str:
        return str(self.tape.format_value(self))

    @override
    def __format__(self, spec: str) -> str:
        return format(self.tape.format_value(self), spec)

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        """Return the plain value for NumPy functions."""
        del copy
        return np.asarray(self.tape.pin(self), dtype)

    @override
    def __reduce__(self) -> Any:
        return self.plain_type, (self.tape.pin(self),)

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __copy__(self) -> Self:
        return self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self


class TracedInt(Traced, torch.SymInt):  # type: ignore[override]  # `node` is read only
    """An int read from a shape or computed from one; a `torch.SymInt`, so that every torch function accepts it."""

    plain_type = int

    @override
    def __index__(self) -> int:
        return int(self.tape.pin(self))

    @override
    def __int__(self) -> int:
        return int(self.tape.pin(self))

    @override
    def __round__(self, ndigits: int | None = None) -> Any:
        return self if ndigits is None or ndigits >= 0 else round(int(self), ndigits)

    @override
    def bit_length(self) -> int:
        """Return the number of bits, as `int.bit_length` does."""
        return int(self).bit_length()

    def is_integer(self) -> bool:
        """Return True, as `int.is_integer` does."""
        return True


class TracedFloat(Traced, torch.SymFloat):  # type: ignore[override]  # `node` is read only
    """A float computed from sizes, such as `h / 16` or `n ** 0.5`."""

    plain_type = float

    @override
    def __int__(self) -> int:
        return int(self.tape.compute(math.trunc, self))

    @override
    def __round__(self, ndigits: int | None = None) -> Any:  # type: ignore[override]
        return self.tape.compute(round, self) if ndigits is None else self.tape.compute(round, self, ndigits)

    @override
    def is_integer(self) -> bool:
        """Return True if the value is integral, as `float.is_integer` does."""
        return self.tape.decide(operator.eq, self.tape.compute(operator.mod, self, 1), 0)


class _GuardingNode:
    """The node through which torch's C++ code reads a traced number; each read records an exact guard."""

    def __init__(self, number: Traced) -> None:
        self._number = number

    def guard_int(self, file: str, line: int) -> int:
        del file, line
        return int(self._number.tape.pin(self._number))

    def guard_float(self, file: str, line: int) -> float:
        del file, line
        return float(self._number)

    def int_(self) -> int:
        return self.guard_int("", 0)

    def is_int(self) -> bool:
        return self._number.plain_type is int

    def is_float(self) -> bool:
        return self._number.plain_type is float

    def is_symbolic(self) -> bool:
        return True

    def is_constant(self) -> bool:
        return False


def _tape_of(number: Traced, other: Any) -> Tape:
    """Return the tape that is still open, of those of two operands."""
    return other.tape if is_traced(other) and not number.tape.is_open else number.tape


def _binary(function: Callable[..., Any], *, reflected: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: Traced, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        return _tape_of(self, other).compute(function, *((other, self) if reflected else (self, other)))

    return method


def _unary(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def method(self: Traced) -> Any:
        return self.tape.compute(function, self)

    return method


def _comparison(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: Traced, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        return _tape_of(self, other).decide(function, self, other)

    return method


def _install() -> None:
    """Add the methods of numbers to the classes; each records what it computes."""
    for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift".split():
        function = getattr(operator, f"__{name}__")
        setattr(Traced, f"__{name}__", _binary(function))
        setattr(Traced, f"__r{name}__", _binary(function, reflected=True))
    for name in "neg pos abs invert".split():
        setattr(Traced, f"__{name}__", _unary(getattr(operator, f"__{name}__")))
    for name in "eq ne lt le gt ge".split():
        setattr(Traced, f"__{name}__", _comparison(getattr(operator, name)))
    for rounding in (math.floor, math.ceil, math.trunc):
        setattr(TracedFloat, f"__{rounding.__name__}__", _unary(rounding))
        setattr(TracedInt, f"__{rounding.__name__}__", lambda self: self)


_install()
