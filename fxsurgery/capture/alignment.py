"""Four recordings of one model become one graph that is right for any values, at any batch size, in either mode.

Two in eval mode, at batch sizes b and b + 1: a number that differs is alpha * batch + beta. One in train mode:
a flag that is False in eval and True in train is the module's own `training`; a rate that is 0 in eval and p in
train is p times it. So what is written into `F.dropout(x, p, training)` or `sdpa(dropout_p=p)` stays alive.
One on other values: a number that differs depends on them, and no graph can hold it.
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

from fxsurgery.capture.trace import OffenceError, Recording

Four = tuple[Any, Any, Any, Any]
"""One argument in the four recordings: the first, at the larger batch, in train mode, on other values."""


@dataclass
class Alignment:
    """Makes the graph of `first` stand for all four; a missing recording is the first itself."""

    first: Recording
    larger: Recording
    trained: Recording
    redrawn: Recording
    batch: int
    """The batch size of `first`; that of `larger` is one more."""
    batched: tuple[int, int]
    """The place of an input with a batch dim, and that dim."""
    _made: dict[str, fx.Node] = field(default_factory=dict)

    def align(self) -> None:
        """Change the graph of `first`.

        Raises:
            OffenceError: the recordings do different things, or a tensor holds the batch size.
        """
        nodes = list(self.first.graph.nodes)
        columns = [nodes]
        for other, what in (
            (self.larger, "what is computed depends on the batch size"),
            (self.trained, "train mode does other things than eval mode"),
            (self.redrawn, "what is computed depends on the values of the inputs"),
        ):
            columns.append(_paired(nodes, list(other.graph.nodes), what))
        twins = {twin: node for column in columns for node, twin in zip(nodes, column, strict=True)}
        self._merge_constants(nodes)
        for row in zip(*columns, strict=True):
            given = [fx.node.map_arg((n.args, n.kwargs), twins.__getitem__) for n in row]
            if row[0].meta.get("guard") and not all(_same(args[1], row[0].args[1]) for args, _ in given):
                # The recordings went different ways and yet did the same.
                self.first.graph.erase_node(row[0])
                continue
            row[0].args, row[0].kwargs = self._merged(row[0], (given[0], given[1], given[2], given[3]))

    def _merge_constants(self, nodes: list[fx.Node]) -> None:
        for name, constant in self.first.constants.items():
            others = (self.larger.constants[name], self.redrawn.constants[name])
            if not all(constant is other or _equal(constant, other) for other in others):
                node = next(n for n in nodes if n.op == "get_attr" and n.target == name)
                user = next(iter(node.users), node)
                raise _offence(user, "a tensor is used that no recorded call made (a scripted function?)")

    def _merged(self, node: fx.Node, given: Four) -> Any:
        one = given[0]
        if isinstance(one, (list, tuple)) and all(type(v) is type(one) and len(v) == len(one) for v in given):
            parts = [self._merged(node, four) for four in zip(*given, strict=True)]
            return type(one)(*parts) if hasattr(one, "_fields") else type(one)(parts)
        if isinstance(one, dict) and all(isinstance(v, dict) and v.keys() == one.keys() for v in given):
            return {k: self._merged(node, (one[k], given[1][k], given[2][k], given[3][k])) for k in one}
        if all(isinstance(v, slice) for v in given):
            return slice(*(self._merged(node, tuple(getattr(v, k) for v in given)) for k in ("start", "stop", "step")))
        if not _same(one, given[3]):
            what = f"an argument of {node.target} depends on the values of the inputs: {one}, {given[3]}"
            raise _offence(node, what)
        if not _same(one, given[1]):
            return self._number(node, one, given[1])
        return one if _same(one, given[2]) else self._flag(node, one, given[2])

    def _number(self, node: fx.Node, one: Any, other: Any) -> fx.Node:
        if not all(isinstance(v, int) and not isinstance(v, bool) for v in (one, other)):
            raise _offence(node, f"an argument of {node.target} depends on the batch size: {one}, {other}")
        slope = other - one
        offset = one - slope * self.batch
        place, dim = self.batched
        size = self._once("size", lambda g, inputs: _size(g.call_method("size", (inputs[place], dim))))
        graph = self.first.graph
        with graph.inserting_before(node):
            scaled = size if slope == 1 else _size(graph.call_function(operator.mul, (size, slope)))
            return scaled if not offset else _size(graph.call_function(operator.add, (scaled, offset)))

    def _flag(self, node: fx.Node, one: Any, other: Any) -> fx.Node:
        path = _inside(node)
        is_rate = isinstance(one, (int, float)) and one == 0.0 and isinstance(other, float)
        if (one, other) != (False, True) and not is_rate:
            raise _offence(node, f"an argument of {node.target} is {one} in eval mode and {other} in train mode")
        target = f"{path}.training" if path else "training"
        flag = self._once(target, lambda g, _: g.create_node("get_attr", target))
        if isinstance(other, bool):
            return flag
        with self.first.graph.inserting_before(node):
            return self.first.graph.call_function(operator.mul, (flag, other))

    def _once(self, key: str, make: Callable[[fx.Graph, list[fx.Node]], fx.Node]) -> fx.Node:
        """A node right after the inputs, made when it is first wanted."""
        if key not in self._made:
            graph = self.first.graph
            inputs = [n for n in graph.nodes if n.op == "placeholder"]
            with graph.inserting_after(inputs[-1]):
                self._made[key] = make(graph, inputs)
        return self._made[key]


def _size(node: fx.Node) -> fx.Node:
    node.meta["size"] = True
    return node


def _paired(nodes: list[fx.Node], others: list[fx.Node], what: str) -> list[fx.Node]:
    keys = [[(n.op, n.target) for n in column] for column in (nodes, others)]
    if keys[0] == keys[1]:
        return others
    found = SequenceMatcher(a=keys[0], b=keys[1], autojunk=False).get_opcodes()
    _, a, b, c, d = next(opcode for opcode in found if opcode[0] != "equal")
    only, instead = nodes[a:b], others[c:d]
    path = functools.reduce(_common, map(_inside, (*only, *instead)))
    names = [", ".join(map(_named, some[:3])) or "nothing" for some in (only, instead)]
    line = str((*only, *instead)[0].meta.get("line", ""))
    raise OffenceError(path, f"{what}: {names[0]} against {names[1]}", "Compute the same in every run", line)


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    both_nan = isinstance(one, float) and math.isnan(one) and math.isnan(other)
    return both_nan or bool(one == other)


def _offence(node: fx.Node, what: str) -> OffenceError:
    return OffenceError(_inside(node), what, line=str(node.meta.get("line", "")))


def _inside(node: fx.Node) -> str:
    return str(node.meta.get("inside", ""))


def _common(left: str, right: str) -> str:
    """The innermost module that two are in."""
    shared = list[str]()
    for a, b in zip(left.split("."), right.split("."), strict=False):
        if a != b:
            break
        shared.append(a)
    return ".".join(shared)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.equal(a, b))


def _named(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target))
