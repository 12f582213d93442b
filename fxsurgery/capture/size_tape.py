"""Writes down what forward computes from the sizes of tensors, and what it decides by them.

What Python computes from a traced size becomes nodes of the graph. Where Python needs the plain value, the graph
gets a *guard*, a condition under which the recording holds:

    if n % 4: ...          a branch guard: n % 4 != 0 has the truth value that it had;
    for t in range(n): ... an exact guard: n == 5;
    tables[f"{n}"]         a text guard: n == 5, which counts only where another text is seen to matter.

A guard is a call of `torch._assert(condition, expected)` with `meta["guard"]`; `size_guards` settles it.
"""

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from fxsurgery.capture.traced_sizes import Traced, TracedFloat, TracedInt, is_traced, plain, simple
from fxsurgery.ops import registry
from fxsurgery.ops.facets import OperandArgument
from fxsurgery.ops.movement import UNBIND
from fxsurgery.ops.queries import STRIDE

Made: TypeAlias = Callable[[fx.Node], fx.Node]
"""Called with each new node."""
ASSERT = torch._assert  # noqa: SLF001 -- the one check that fx, export and generated code know


_READ_BY = {"sizes": "size", "first": "size", "count": "numel"}
"""The method by which a graph reads sizes of a tensor."""


def size_method(name: str) -> str | None:
    """Return the method that reads what a function or attribute of a tensor gives; `None` where that is no size."""
    operator = registry.of_method(name) or registry.of_attribute(name)
    if operator is STRIDE:
        return "stride"
    return None if operator is None else _READ_BY.get(operator.extents or "")


class SizeTape:
    """Writes down what is computed from sizes, and what is decided by them.

    Once closed it writes nothing more: numbers that outlive their recording, in a cache of the user's, are plain.
    """

    def __init__(self, graph: fx.Graph, made: Made) -> None:
        self._graph, self._made = graph, made
        self._pinned, self._shown = set[fx.Node](), set[fx.Node]()
        self.is_open = True

    def close(self) -> None:
        """End the recording."""
        self.is_open = False

    def read(self, method: str, tensor: fx.Node, *args: int, value: int) -> "TracedInt":
        """Record that `tensor.method(*args)` gave `value`."""
        node = self._made(self._graph.call_method(method, (tensor, *args)))
        node.meta["size"] = True
        return TracedInt(value, node, self)

    def compute(self, function: Callable[..., Any], *operands: Any) -> Any:
        """Return `function(*operands)`, traced; plain where it is no int or float."""
        value = function(*map(plain, operands))
        if not self.is_open:
            return value
        if not isinstance(value, (int, float)):
            for operand in filter(is_traced, operands):
                self.pin(operand)
            return value
        node = self._made(self._graph.call_function(function, tuple(map(self.operand, operands))))
        node.meta["size"] = True
        return (TracedInt if isinstance(value, int) else TracedFloat)(simple(value), node, self)

    def decide(self, function: Callable[..., Any], *operands: Any) -> bool:
        """Return the truth value of a comparison, which becomes a branch guard."""
        value = bool(function(*map(plain, operands)))
        if self.is_open:
            self._guard("branch", function, *operands, expected=value)
        return value

    def pin(self, number: "Traced") -> Any:
        """Return the plain value of `number`, which becomes an exact guard."""
        if self.is_open and number.node_of not in self._pinned:
            self._pinned.add(number.node_of)
            self._guard("exact", operator.eq, number, number.value_of, expected=True)
        return number.value_of

    def pin_count(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], node_for: Callable[[Any], Any]
    ) -> None:
        """Guard the number of parts that the function `name` took a tensor apart into, if it is one that does so."""
        operator = registry.of_method(name)
        if operator is None or (operator.parts is None and operator is not UNBIND):
            return
        by: Any = None if operator.parts is None else operator.parts.of_call(args, kwargs)
        dim: int = OperandArgument(1 if operator.parts is None else 2, "dim", 0).of_call(args, kwargs)
        tensor: Any = OperandArgument(0, "input", None, ("tensor",)).of_call(args, kwargs)
        if isinstance(by, (list, tuple)) or not tensor.size(dim):
            return
        count: Any = self.read("size", node_for(tensor), dim, value=int(tensor.shape[dim]))
        if operator.parts is not None and operator.parts.name == "chunks":
            by = -(-count // by)
        self.pin(count if by is None else -(-count // by))

    def show(self, number: "Traced") -> Any:
        """Return the plain value of `number`, to be written into a text; that becomes a text guard."""
        if self.is_open and number.node_of not in self._pinned | self._shown:
            self._shown.add(number.node_of)
            self._guard("text", operator.eq, number, number.value_of, expected=True)
        return number.value_of

    def operand(self, value: Any) -> Any:
        """Return the node of a number of this recording, and the plain value of any other."""
        return value.node_of if is_traced(value) and value.tape is self else simple(plain(value))

    def _guard(self, kind: str, function: Callable[..., Any], *operands: Any, expected: bool) -> None:
        condition = self._made(self._graph.call_function(function, tuple(map(self.operand, operands))))
        condition.meta["size"] = True
        check = self._made(self._graph.call_function(ASSERT, (condition, expected)))
        check.meta["guard"] = kind
