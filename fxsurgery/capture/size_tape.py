"""Tape of what forward computes from tensor sizes, and of the decisions that depend on them.

Python computations with a traced size become nodes of the graph. Where Python needs the plain value, the graph
gets a *guard*, a condition under which the recording holds:

    if n % 4: ...          a branch guard: n % 4 != 0 has the same truth value;
    for t in range(n): ... an exact guard: n == 5;
    tables[f"{n}"]         a text guard: n == 5, enforced only if another text turns out to matter.

A guard is a call of `torch._assert(condition, expected)` with `meta["guard"]`; `size_guards` resolves it.
"""

import operator
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import fx

from fxsurgery.capture.traced_sizes import Traced, TracedFloat, TracedInt, is_traced, to_builtin, untraced
from fxsurgery.ops import registry
from fxsurgery.ops.facets import OperandArgument
from fxsurgery.ops.movement import UNBIND
from fxsurgery.ops.queries import STRIDE

OnNode: TypeAlias = Callable[[fx.Node], fx.Node]
"""Called with each new node; it returns the node."""
ASSERT = torch._assert  # noqa: SLF001 -- the only assertion that fx, export and generated code support


_READ_BY = {"sizes": "size", "first": "size", "count": "numel"}
"""Tensor method that reads each kind of size in a graph."""


def size_method(name: str) -> str | None:
    """Return the tensor method that reads the same as a function or attribute; None if it reads no size."""
    operator = registry.of_method(name) or registry.of_attribute(name)
    if operator is STRIDE:
        return "stride"
    return None if operator is None else _READ_BY.get(operator.extents or "")


class SizeTape:
    """Records computations with sizes, and decisions that depend on sizes.

    A closed tape records nothing: numbers that outlive the recording, for example in the user's cache, become plain.
    """

    def __init__(self, graph: fx.Graph, on_node: OnNode) -> None:
        self._graph, self._on_node = graph, on_node
        self._pinned, self._shown = set[fx.Node](), set[fx.Node]()
        self.is_open = True

    def close(self) -> None:
        """Stop recording."""
        self.is_open = False

    def read(self, method: str, tensor: fx.Node, *args: int, value: int) -> "TracedInt":
        """Record that `tensor.method(*args)` returned `value`; return it as a traced number."""
        node = self._on_node(self._graph.call_method(method, (tensor, *args)))
        node.meta["size"] = True
        return TracedInt(value, node, self)

    def compute(self, function: Callable[..., Any], *operands: Any) -> Any:
        """Return `function(*operands)` as a traced number; as a plain value if it is neither int nor float."""
        value = function(*map(untraced, operands))
        if not self.is_open:
            return value
        if not isinstance(value, (int, float)):
            for operand in filter(is_traced, operands):
                self.pin(operand)
            return value
        node = self._on_node(self._graph.call_function(function, tuple(map(self.operand, operands))))
        node.meta["size"] = True
        return (TracedInt if isinstance(value, int) else TracedFloat)(to_builtin(value), node, self)

    def decide(self, function: Callable[..., Any], *operands: Any) -> bool:
        """Return the truth value of a comparison and record it as a branch guard."""
        value = bool(function(*map(untraced, operands)))
        if self.is_open:
            self._guard("branch", function, *operands, expected=value)
        return value

    def pin(self, number: "Traced") -> Any:
        """Return the plain value of `number` and record it as an exact guard."""
        if self.is_open and number.node_of not in self._pinned:
            self._pinned.add(number.node_of)
            self._guard("exact", operator.eq, number, number.value_of, expected=True)
        return number.value_of

    def pin_count(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], node_for: Callable[[Any], Any]
    ) -> None:
        """Record a guard on the number of parts if the function `name` splits a tensor into parts."""
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

    def format_value(self, number: "Traced") -> Any:
        """Return the plain value of `number` for use in a text, and record a text guard."""
        if self.is_open and number.node_of not in self._pinned | self._shown:
            self._shown.add(number.node_of)
            self._guard("text", operator.eq, number, number.value_of, expected=True)
        return number.value_of

    def operand(self, value: Any) -> Any:
        """Return the node of a number traced on this tape; the plain value of any other."""
        return value.node_of if is_traced(value) and value.tape is self else to_builtin(untraced(value))

    def _guard(self, kind: str, function: Callable[..., Any], *operands: Any, expected: bool) -> None:
        condition = self._on_node(self._graph.call_function(function, tuple(map(self.operand, operands))))
        condition.meta["size"] = True
        check = self._on_node(self._graph.call_function(ASSERT, (condition, expected)))
        check.meta["guard"] = kind
