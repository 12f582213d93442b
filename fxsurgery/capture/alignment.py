"""Merge four recordings of a model into one graph that holds for any values, any batch size and both modes.

Two recordings are in eval mode, at batch sizes b and b + 1: a number that differs is `alpha * batch + beta`. One is in
train mode: a flag that is False in eval and True in train mode is `self.training`; a rate that is 0 in eval and p in
train mode is `p * self.training`. This keeps the mode live in `F.dropout(x, p, training)` and `sdpa(dropout_p=p)`. One
has other input values: a number that differs depends on them, which no graph can represent.
"""

import functools
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from typing import Any

import torch
from torch import Tensor, fx

from fxsurgery.capture.trace import REWRITE, Recording, UnsupportedCodeError

Four = tuple[Any, Any, Any, Any]
"""One argument in the recordings `first`, `larger`, `trained` and `redrawn`, in this order."""


@dataclass
class Alignment:
    """Generalizes the graph of `first` to all four recordings; pass `first` itself in place of a missing one."""

    first: Recording
    larger: Recording
    trained: Recording
    redrawn: Recording
    batch: int
    """Batch size of `first`; that of `larger` is one more."""
    batched: tuple[int, int]
    """Position of an input that has a batch dim, and that dim."""
    _shared_nodes: dict[str, fx.Node] = field(default_factory=dict)

    def align(self) -> None:
        """Generalize the graph of `first` in place.

        Raises:
            UnsupportedCodeError: the recordings call different operations, or a tensor depends on the batch size.
        """
        nodes = list(self.first.graph.nodes)
        columns = [nodes]
        for other, what in (
            (self.larger, "the operations depend on the batch size"),
            (self.trained, "train mode runs other operations than eval mode"),
            (self.redrawn, "the operations depend on the values of the inputs"),
        ):
            columns.append(_paired(nodes, list(other.graph.nodes), what))
        twins = {twin: node for column in columns for node, twin in zip(nodes, column, strict=True)}
        self._merge_constants(nodes)
        for row in zip(*columns, strict=True):
            versions = [fx.node.map_arg((n.args, n.kwargs), twins.__getitem__) for n in row]
            if row[0].meta.get("guard") and not all(_same(args[1], row[0].args[1]) for args, _ in versions):
                # The branch went different ways in the recordings, yet the operations are the same.
                self.first.graph.erase_node(row[0])
                continue
            row[0].args, row[0].kwargs = self._merged(row[0], (versions[0], versions[1], versions[2], versions[3]))

    def _merge_constants(self, nodes: list[fx.Node]) -> None:
        for name, constant in self.first.constants.items():
            others = (self.larger.constants[name], self.redrawn.constants[name])
            if not all(constant is other or _equal(constant, other) for other in others):
                node = next(n for n in nodes if n.op == "get_attr" and n.target == name)
                user = next(iter(node.users), node)
                raise _unsupported(user, "a tensor is used that no recorded call created (by a scripted function?)")

    def _merged(self, node: fx.Node, versions: Four) -> Any:
        one = versions[0]
        if isinstance(one, (list, tuple)) and all(type(v) is type(one) and len(v) == len(one) for v in versions):
            parts = [self._merged(node, four) for four in zip(*versions, strict=True)]
            return type(one)(*parts) if hasattr(one, "_fields") else type(one)(parts)
        if isinstance(one, dict) and all(isinstance(v, dict) and v.keys() == one.keys() for v in versions):
            return {k: self._merged(node, (one[k], versions[1][k], versions[2][k], versions[3][k])) for k in one}
        if all(isinstance(v, slice) for v in versions):
            return slice(
                *(self._merged(node, tuple(getattr(v, k) for v in versions)) for k in ("start", "stop", "step"))
            )
        if not _same(one, versions[3]):
            what = f"an argument of {node.target} depends on the values of the inputs ({one} or {versions[3]})"
            raise _unsupported(node, what, "Compute it with tensor operations")
        if not _same(one, versions[1]):
            return self._number(node, one, versions[1])
        return one if _same(one, versions[2]) else self._flag(node, one, versions[2])

    def _number(self, node: fx.Node, one: Any, other: Any) -> fx.Node:
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in (one, other)):
            what = f"an argument of {node.target} depends on the batch size ({one} or {other})"
            raise _unsupported(node, what, "Compute it from x.shape in integer arithmetic")
        slope = other - one
        offset = one - slope * self.batch
        place, dim = self.batched
        size = self._once("size", lambda g, inputs: _as_size(g.call_method("size", (inputs[place], dim))))
        graph = self.first.graph
        with graph.inserting_before(node):
            scaled = size if slope == 1 else _as_size(graph.call_function(operator.mul, (size, slope)))
            return scaled if not offset else _as_size(graph.call_function(operator.add, (scaled, offset)))

    def _flag(self, node: fx.Node, one: Any, other: Any) -> fx.Node:
        path = _module_path(node)
        is_rate = isinstance(one, (int, float)) and one == 0.0 and isinstance(other, float)
        if (one, other) != (False, True) and not is_rate:
            what = f"an argument of {node.target} is {one} in eval mode and {other} in train mode"
            raise _unsupported(node, what, "Use one value in both modes, or self.training itself")
        target = f"{path}.training" if path else "training"
        flag = self._once(target, lambda g, _: g.create_node("get_attr", target))
        if isinstance(other, bool):
            return flag
        with self.first.graph.inserting_before(node):
            return self.first.graph.call_function(operator.mul, (flag, other))

    def _once(self, key: str, make: Callable[[fx.Graph, list[fx.Node]], fx.Node]) -> fx.Node:
        """Return the node cached under `key`; create it right after the inputs on first use."""
        if key not in self._shared_nodes:
            graph = self.first.graph
            inputs = [n for n in graph.nodes if n.op == "placeholder"]
            with graph.inserting_after(inputs[-1]):
                self._shared_nodes[key] = make(graph, inputs)
        return self._shared_nodes[key]


def _as_size(node: fx.Node) -> fx.Node:
    node.meta["size"] = True
    return node


def _paired(nodes: list[fx.Node], others: list[fx.Node], what: str) -> list[fx.Node]:
    keys = [[(n.op, n.target) for n in column] for column in (nodes, others)]
    if keys[0] == keys[1]:
        return others
    opcodes = SequenceMatcher(a=keys[0], b=keys[1], autojunk=False).get_opcodes()
    _, a, b, c, d = next(opcode for opcode in opcodes if opcode[0] != "equal")
    only, instead = nodes[a:b], others[c:d]
    path = functools.reduce(_common, map(_module_path, (*only, *instead)))
    names = [", ".join(map(_target_name, some[:3])) or "nothing" for some in (only, instead)]
    line = str((*only, *instead)[0].meta.get("line", ""))
    raise UnsupportedCodeError(
        path, f"{what} ({names[0]} or {names[1]})", "Run the same operations in every call", line
    )


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    both_nan = isinstance(one, float) and math.isnan(one) and math.isnan(other)
    return both_nan or bool(one == other)


def _unsupported(node: fx.Node, what: str, remedy: str = REWRITE) -> UnsupportedCodeError:
    return UnsupportedCodeError(_module_path(node), what, remedy, str(node.meta.get("line", "")))


def _module_path(node: fx.Node) -> str:
    return str(node.meta.get("inside", ""))


def _common(left: str, right: str) -> str:
    """Return the path of the innermost module that contains both."""
    shared = list[str]()
    for a, b in zip(left.split("."), right.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))


def _target_name(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
