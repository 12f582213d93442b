"""Numbers that remember how forward computed them from the sizes of tensors.

While a model is recorded, `x.shape` gives `TracedInt`s: what Python computes from them becomes nodes of the
graph, so `x.view(n, h * w)` holds for every `h` and `w`. Where Python needs the plain value, the graph gets a
*guard*, a condition under which the recording holds:

    if n % 4: ...          a branch guard: n % 4 != 0 has the truth value that it had;
    for t in range(n): ... an exact guard: n == 5.

A guard is a call of `torch._assert(condition, expected)` with `meta["guard"]`; `size_guards` settles it.
"""

import math
import operator
from collections.abc import Callable
from typing import Any, TypeAlias, TypeGuard

import torch
from torch import fx
from torch.utils import _pytree as pytree
from typing_extensions import override

Made: TypeAlias = Callable[[fx.Node], fx.Node]
"""Called with each new node."""
ASSERT = torch._assert  # noqa: SLF001 -- the one check that fx, export and generated code know


class SizeTape:
    """Writes down what is computed from sizes, and what is decided by them."""

    def __init__(self, graph: fx.Graph, made: Made) -> None:
        self._graph, self._made = graph, made
        self._pinned = set[fx.Node]()

    def read(self, method: str, tensor: fx.Node, *args: int, value: int) -> "TracedInt":
        """Record that `tensor.method(*args)` gave `value`."""
        node = self._made(self._graph.call_method(method, (tensor, *args)))
        node.meta["size"] = True
        return TracedInt(value, node, self)

    def compute(self, function: Callable[..., Any], *operands: Any) -> Any:
        """Return `function(*operands)`, traced."""
        value = function(*map(plain, operands))
        node = self._made(self._graph.call_function(function, tuple(map(node_or_value, operands))))
        node.meta["size"] = True
        return traced(value, node, self)

    def decide(self, function: Callable[..., Any], *operands: Any) -> bool:
        """Return the truth value of a comparison, which becomes a branch guard."""
        value = bool(function(*map(plain, operands)))
        self._guard("branch", function, *operands, expected=value)
        return value

    def pin(self, number: "Traced") -> Any:
        """Return the plain value of `number`, which becomes an exact guard."""
        if number.node_of not in self._pinned:
            self._pinned.add(number.node_of)
            self._guard("exact", operator.eq, number, number.value_of, expected=True)
        return number.value_of

    def pin_count(self, several: fx.Node, count: int) -> None:
        """Guard the number of tensors that a node gives."""
        length = self._made(self._graph.call_function(len, (several,)))
        length.meta["size"] = True
        self.pin(TracedInt(count, length, self))

    def _guard(self, kind: str, function: Callable[..., Any], *operands: Any, expected: bool) -> None:
        condition = self._made(self._graph.call_function(function, tuple(map(node_or_value, operands))))
        condition.meta["size"] = True
        check = self._made(self._graph.call_function(ASSERT, (condition, expected)))
        check.meta["guard"] = kind


def traced(value: Any, node: fx.Node, tape: SizeTape) -> Any:
    """Return `value` as a traced number."""
    if type(value) is int:
        return TracedInt(value, node, tape)
    return TracedFloat(value, node, tape) if type(value) is float else value


def is_traced(value: object) -> "TypeGuard[Traced]":
    """Whether `value` is a traced number."""
    return type(value) is TracedInt or type(value) is TracedFloat


def plain(value: Any) -> Any:
    """Return `value` with plain numbers for the traced ones in it; no guard is recorded."""
    if is_traced(value):
        return value.value_of
    if type(value) is slice:
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    if type(value) is torch.Size:
        return torch.Size([plain(v) for v in value])
    if type(value) in {tuple, list}:
        return type(value)(map(plain, value))
    if type(value) is dict:
        return {k: plain(v) for k, v in value.items()}
    return pytree.tree_map(_plain_leaf, value) if type(value) in pytree.SUPPORTED_NODES else value


def _plain_leaf(leaf: Any) -> Any:
    return plain(leaf) if is_traced(leaf) or type(leaf) is slice else leaf


def node_or_value(value: Any) -> Any:
    """Return the node of a traced number, and any other value as it is."""
    return value.node_of if is_traced(value) else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


def _binary(function: Callable[..., Any], *, reflected: bool = False) -> Callable[[Any, Any], Any]:
    def method(self: "Traced", other: Any) -> Any:
        if not _is_number(other):
            return NotImplemented
        operands = (other, self) if reflected else (self, other)
        return self.tape.compute(function, *operands)

    return method


def _unary(function: Callable[..., Any]) -> Callable[[Any], Any]:
    def method(self: "Traced") -> Any:
        return self.tape.compute(function, self)

    return method


def _comparison(function: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    def method(self: "Traced", other: Any) -> Any:
        return self.tape.decide(function, self, other) if _is_number(other) else NotImplemented

    return method


class TracedInt(torch.SymInt):
    """An int read from a shape or computed from one.

    It is a `torch.SymInt`, so that every torch function takes it, and `isinstance(n, int)` holds as in eager mode.
    """

    def __init__(self, value: int, node: fx.Node, tape: SizeTape) -> None:
        self.value_of, self.node_of, self.tape = value, node, tape

    @property  # type: ignore[misc]  # what isinstance() goes by
    def __class__(self) -> type:
        return int

    @property
    def node(self) -> "_Guarded":  # type: ignore[override]  # what torch's C++ code asks for the value
        """The value, for torch's own code."""
        return _Guarded(self)

    @override
    def __bool__(self) -> bool:
        return self.tape.decide(operator.ne, self, 0)

    @override
    def __index__(self) -> int:
        return int(self.tape.pin(self))

    @override
    def __int__(self) -> int:
        return int(self.tape.pin(self))

    def __float__(self) -> float:
        return float(self.tape.pin(self))

    @override
    def __hash__(self) -> int:
        return hash(self.tape.pin(self))

    @override
    def __round__(self, ndigits: int | None = None) -> Any:
        return self

    def __divmod__(self, other: Any) -> Any:
        return self // other, self % other

    def __rdivmod__(self, other: Any) -> Any:
        return other // self, other % self

    @override
    def __repr__(self) -> str:
        return repr(self.value_of)

    @override
    def __str__(self) -> str:
        return str(self.value_of)

    @override
    def __format__(self, spec: str) -> str:
        return format(self.value_of, spec)

    @override
    def __reduce__(self) -> Any:
        return int, (self.tape.pin(self),)

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __copy__(self) -> Any:
        return self

    def __floor__(self) -> Any:
        return self

    def __ceil__(self) -> Any:
        return self

    def __trunc__(self) -> Any:
        return self

    def bit_length(self) -> int:
        """Return the number of bits, as `int.bit_length` does."""
        return self.__index__().bit_length()

    def is_integer(self) -> bool:
        """Return True, as `int.is_integer` does."""
        return True


class TracedFloat(torch.SymFloat):
    """A float computed from sizes: `h / 16`, `n ** 0.5`."""

    def __init__(self, value: float, node: fx.Node, tape: SizeTape) -> None:
        self.value_of, self.node_of, self.tape = value, node, tape

    @property  # type: ignore[misc]  # what isinstance() goes by
    def __class__(self) -> type:
        return float

    @property
    def node(self) -> "_Guarded":  # type: ignore[override]  # what torch's C++ code asks for the value
        """The value, for torch's own code."""
        return _Guarded(self)

    @override
    def __bool__(self) -> bool:
        return self.tape.decide(operator.ne, self, 0.0)

    @override
    def __float__(self) -> float:
        return float(self.tape.pin(self))

    @override
    def __int__(self) -> int:
        return int(self.tape.compute(math.trunc, self))

    @override
    def __hash__(self) -> int:
        return hash(self.tape.pin(self))

    def __round__(self, ndigits: int | None = None) -> Any:
        operands = (self,) if ndigits is None else (self, ndigits)
        return self.tape.compute(round, *operands)

    @override
    def __repr__(self) -> str:
        return repr(self.value_of)

    @override
    def __str__(self) -> str:
        return str(self.value_of)

    @override
    def __format__(self, spec: str) -> str:
        return format(self.value_of, spec)

    @override
    def __reduce__(self) -> Any:
        return float, (self.tape.pin(self),)

    def __deepcopy__(self, memo: Any) -> Any:
        return self

    def __copy__(self) -> Any:
        return self

    def is_integer(self) -> bool:
        """Return whether the value is whole, as `float.is_integer` does."""
        return bool(self % 1 == 0)


Traced: TypeAlias = TracedInt | TracedFloat


class _Guarded:
    """The value of a traced number as torch's C++ code reads it; each read is an exact guard."""

    def __init__(self, number: Traced) -> None:
        self._number = number

    def guard_int(self, file: str, line: int) -> int:
        del file, line
        return int(self._number)

    def guard_float(self, file: str, line: int) -> float:
        del file, line
        return float(self._number)

    def int_(self) -> int:
        return int(self._number)

    def is_int(self) -> bool:
        return type(self._number) is TracedInt

    def is_float(self) -> bool:
        return type(self._number) is TracedFloat

    def is_symbolic(self) -> bool:
        return True

    def is_constant(self) -> bool:
        return False


_ARITHMETIC = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "truediv": operator.truediv,
    "floordiv": operator.floordiv,
    "mod": operator.mod,
    "pow": operator.pow,
}
_BITWISE = {
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
    "lshift": operator.lshift,
    "rshift": operator.rshift,
}
_SIGNS = {"neg": operator.neg, "pos": operator.pos, "abs": abs}
_COMPARISONS = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}


def _install() -> None:
    for kind, table in ((TracedInt, _ARITHMETIC | _BITWISE), (TracedFloat, _ARITHMETIC)):
        for name, function in table.items():
            setattr(kind, f"__{name}__", _binary(function))
            setattr(kind, f"__r{name}__", _binary(function, reflected=True))
        for name, function in _SIGNS.items():
            setattr(kind, f"__{name}__", _unary(function))
        for name, function in _COMPARISONS.items():
            setattr(kind, f"__{name}__", _comparison(function))
    TracedInt.__invert__ = _unary(operator.invert)  # type: ignore[method-assign]
    for name, function in {"floor": math.floor, "ceil": math.ceil, "trunc": math.trunc}.items():
        setattr(TracedFloat, f"__{name}__", _unary(function))


_install()
