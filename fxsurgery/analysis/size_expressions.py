"""Numbers that the graph computes from shapes, and the dims of the tensors that they depend on.

A number that is used as a size (`x.view(n, c // 2, ...)`) is rewritten with the size. A number with any other use
(`x / c ** 0.5`) must keep its value, so the dims that it depends on freeze.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from fxsurgery.ops import registry
from fxsurgery.ops.facets import OperandArgument, SizeRule
from fxsurgery.ops.movement import GETITEM

Source = tuple[fx.Node, tuple[int, ...]]
"""A tensor, and those of its dims that a number depends on."""


class SizeExpressions:
    """Numbers that one propagation has seen so far."""

    def __init__(self) -> None:
        self._sources: dict[fx.Node, set[Source]] = {}

    def note(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> None:
        """Record the dims that the numbers of `node` depend on."""
        source = node.args[0] if node.args else None
        if counts(node) and isinstance(source, fx.Node) and isinstance(env.get(source), Tensor):
            dims = tuple(range(env[source].dim()))
            chosen = _chosen(node)
            self._sources[node] = {(source, (dims[chosen],) if isinstance(chosen, int) else dims)}
            return
        sources = self.behind(node)
        if registry.of(node) is GETITEM and len(node.args) > 1 and not isinstance(node.args[1], fx.Node):
            sources = {(tensor, _picked(dims, node.args[1])) for tensor, dims in sources}
        if sources:
            self._sources[node] = sources

    def forget(self, node: fx.Node) -> None:
        """Forget the numbers of `node`, whose value is a tensor."""
        self._sources.pop(node, None)

    def behind(self, node: fx.Node) -> set[Source]:
        """Return the tensors and dims that the numbers among the inputs of `node` depend on."""
        if not self._sources:
            return set()
        return self.of(node.all_input_nodes)

    def of(self, nodes: Iterable[fx.Node]) -> set[Source]:
        """Return the tensors and dims that the numbers of `nodes` depend on."""
        return set[Source]().union(*(self._sources.get(n, ()) for n in nodes))

    def by_name(self) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
        """Return by node the tensors and dims that its number depends on."""
        return {n.name: tuple((t.name, dims) for t, dims in found) for n, found in self._sources.items()}


def counts(node: fx.Node) -> bool:
    """Return True if `node` reads the extents of its first input."""
    return _extents(node) in {"sizes", "count", "first"}


def extents(node: fx.Node, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 -- a size or several
    """Return the value of a node that `counts` for an input of `shape`."""
    kind = _extents(node)
    if kind == "count":
        return math.prod(shape)
    if kind == "first":
        return shape[0]
    chosen = _chosen(node)
    return shape[chosen] if isinstance(chosen, int) else shape


def _extents(node: fx.Node) -> str | None:
    operator = registry.of(node)
    return None if operator is None else operator.extents


def _chosen(node: fx.Node) -> object:
    """Return the only dim whose size is read."""
    spelling = registry.spelling_of(node)
    if spelling is None or spelling.operator.extents != "sizes" or spelling.form == "attribute":
        return None
    return OperandArgument(1, "dim").of_node(node)


def _picked(dims: tuple[int, ...], index: object) -> tuple[int, ...]:
    """Return the dims that an entry or a slice of a shape depends on."""
    if len(dims) > 1 and isinstance(index, int):
        return (dims[index],)
    return dims[index] if len(dims) > 1 and isinstance(index, slice) else dims


def computed_slices(node: fx.Node, rank: int) -> Iterator[tuple[int, tuple[fx.Node, ...]]]:
    """Return the dims of its first input, of `rank` dims, that `node` slices by computed numbers, and these numbers."""
    operator = registry.of(node)
    if operator is None or (sizes := operator.sizes) is None:
        return
    if sizes.rule in {SizeRule.RANGE, SizeRule.ENTRY} and isinstance(dim := sizes.arguments[0].of_node(node), int):
        numbers = tuple(n for n in node.all_input_nodes if n is not node.args[0])
        if numbers:
            yield dim % rank, numbers
    if sizes.rule is not SizeRule.INDEX or operator.writes or len(node.args) < 2:
        return
    yield from _indexed_by_numbers(node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],), rank)


def _indexed_by_numbers(index: tuple[object, ...], rank: int) -> Iterator[tuple[int, tuple[fx.Node, ...]]]:
    taken = sum(part is not None and part is not Ellipsis for part in index)
    dim = 0
    for part in index:
        if part is Ellipsis:
            dim += rank - taken
        elif part is not None:
            if numbers := _numbers_in(part):
                yield dim, numbers
            dim += 1


def _numbers_in(part: object) -> tuple[fx.Node, ...]:
    bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
    return tuple(bound for bound in bounds if isinstance(bound, fx.Node))
