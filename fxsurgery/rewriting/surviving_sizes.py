"""Sizes of tensors, and numbers computed from them, after units are removed or copied."""

# ruff: noqa: ANN401 -- values of the user's graph

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxsurgery.analysis.size_expressions import counts, extents
from fxsurgery.analysis.structure import Counts, Structure
from fxsurgery.ops.labels import Labels


@dataclass
class SurvivingSizes:
    """Sizes after the change, and the numbers that the graph computes from them."""

    facts: Structure
    keep: Counts
    _known: dict[fx.Node, Any] = field(default_factory=dict)

    def size(self, labels: Labels, dim: int) -> int:
        """Return the surviving size of a dim."""
        ids = self.facts.along(labels).get(dim)
        return labels.shape[dim] if ids is None else int(self.keep[ids].sum())

    def number(self, node: fx.Node) -> Any:
        """Return the value of a number node in the resized program."""
        if node.name not in self.facts.numbers:
            return self.facts.values[node.name]
        if node not in self._known:
            self._known[node] = self._worked_out(node)
        return self._known[node]

    def _worked_out(self, node: fx.Node) -> Any:
        source = node.args[0] if node.args else None
        labels = self.facts.values.get(source.name) if isinstance(source, fx.Node) else None
        if counts(node) and isinstance(labels, Labels):
            return extents(node, tuple(self.size(labels, d) for d in range(len(labels.shape))))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.number)
        if node.op == "call_function" and callable(node.target):
            return node.target(*args, **kwargs)
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)

    def is_stale(self, node: fx.Node) -> bool:
        """Return True if a single number changes."""
        if not isinstance(self.facts.values[node.name], int) or node.name not in self.facts.numbers:
            return False
        return bool(self.number(node) != self.facts.values[node.name])

    def holds_batch(self, node: fx.Node) -> bool:
        """Return True if a number may depend on the batch size, because a dim 0 contributes to it."""
        return any(0 in dims for _, dims in self.facts.numbers.get(node.name, ()))
