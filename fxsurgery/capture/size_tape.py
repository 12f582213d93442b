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

Made: TypeAlias = Callable[[fx.Node], fx.Node]
"""Called with each new node."""
ASSERT = torch._assert  # noqa: SLF001 -- the one check that fx, export and generated code know

PARTED = {
    "split": "split_size", "unsafe_split": "split_size", "chunk": "chunks", "unsafe_chunk": "chunks", "unbind": "",
}  # fmt: skip
"""Functions that give as many tensors as a size says, which Python takes apart, and the argument they go by."""


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
        if name not in PARTED:
            return
        places = ["input", "dim"] if name == "unbind" else ["input", PARTED[name], "dim"]
        said = {"dim": 0, **dict(zip(places, args, strict=False)), **kwargs}
        by: Any = said.get(PARTED[name], said.get("split_size_or_sections"))
        tensor: Any = said.get("input", said.get("tensor"))
        if isinstance(by, (list, tuple)) or not tensor.size(said["dim"]):
            return
        count: Any = self.read("size", node_for(tensor), said["dim"], value=int(tensor.shape[said["dim"]]))
        if "chunk" in name:
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
