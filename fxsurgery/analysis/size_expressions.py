"""Numbers that the graph computes from shapes, and which dims of which tensors they came from.

A number that says a size (`x.view(n, c // 2, ...)`) is rewritten with the size. One that is used in any
other way (`x / c ** 0.5`) must stay what it is, so the dims that it came from freeze.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, fx

from fxsurgery.analysis.shapes import target_name

COUNTS = {"size", "numel", "len", "__len__", "nelement"}
"""Functions and methods that give a tensor's extents."""

Source = tuple[fx.Node, tuple[int, ...]]
"""A tensor, and those of its dims that a number came from."""


class Numbers:
    """What one walk has seen of numbers so far."""

    def __init__(self) -> None:
        self._sources: dict[fx.Node, set[Source]] = {}

    def note(self, node: fx.Node, env: Mapping[fx.Node, Any]) -> None:
        """Remember which dims the numbers that `node` gives or passes on came from."""
        source = node.args[0] if node.args else None
        if counts(node) and isinstance(source, fx.Node) and isinstance(env.get(source), Tensor):
            dims = tuple(range(env[source].dim()))
            chosen = _chosen(node)
            self._sources[node] = {(source, (dims[chosen],) if isinstance(chosen, int) else dims)}
            return
        sources = self.behind(node)
        if target_name(node) == "getitem" and len(node.args) > 1 and not isinstance(node.args[1], fx.Node):
            sources = {(tensor, _picked(dims, node.args[1])) for tensor, dims in sources}
        if sources:
            self._sources[node] = sources

    def forget(self, node: fx.Node) -> None:
        """`node` turned out to give a tensor: its numbers end there."""
        self._sources.pop(node, None)

    def behind(self, node: fx.Node) -> set[Source]:
        """The tensors and dims that the numbers among `node`'s inputs came from."""
        if not self._sources:
            return set()
        return self.of(node.all_input_nodes)

    def of(self, nodes: Iterable[fx.Node]) -> set[Source]:
        """The tensors and dims that the numbers which `nodes` give came from."""
        return set[Source]().union(*(self._sources.get(n, ()) for n in nodes))

    def by_name(self) -> dict[str, tuple[tuple[str, tuple[int, ...]], ...]]:
        """By node: the tensors and dims that the number it gives came from."""
        return {n.name: tuple((t.name, dims) for t, dims in found) for n, found in self._sources.items()}


def counts(node: fx.Node) -> bool:
    """Whether `node` reads the extents of its first input."""
    if node.op == "call_module":
        return False
    name = target_name(node)
    return name in COUNTS or (name == "getattr" and bool(node.args[1] == "shape"))


def extents(node: fx.Node, shape: tuple[int, ...]) -> Any:  # noqa: ANN401 -- a size or several
    """What a node that `counts` gives for an input of `shape`."""
    name = target_name(node)
    if name in {"numel", "nelement"}:
        return math.prod(shape)
    if name in {"len", "__len__"}:
        return shape[0]
    chosen = _chosen(node)
    return shape[chosen] if isinstance(chosen, int) else shape


def _chosen(node: fx.Node) -> object:
    if target_name(node) != "size":
        return None
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")


def _picked(dims: tuple[int, ...], index: object) -> tuple[int, ...]:
    """Which dims an entry or a part of a shape came from."""
    if len(dims) > 1 and isinstance(index, int):
        return (dims[index],)
    return dims[index] if len(dims) > 1 and isinstance(index, slice) else dims


def computed_slices(node: fx.Node, rank: int) -> Iterator[tuple[int, tuple[fx.Node, ...]]]:
    """The dims of its first input, of `rank` dims, along which `node` takes a part by computed numbers, and those."""
    name = target_name(node)
    if name in {"narrow", "select"} and isinstance(dim := _told(node, 1, "dim"), int):
        numbers = tuple(n for n in node.all_input_nodes if n is not node.args[0])
        if numbers:
            yield dim % rank, numbers
    if name != "getitem" or len(node.args) < 2:
        return
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    taken = sum(part is not None and part is not Ellipsis for part in index)
    dim = 0
    for part in index:
        if part is Ellipsis:
            dim += rank - taken
        elif part is not None:
            if numbers := _numbers_in(part):
                yield dim, numbers
            dim += 1


def _told(node: fx.Node, position: int, name: str) -> object:
    return node.args[position] if len(node.args) > position else node.kwargs.get(name)


def _numbers_in(part: object) -> tuple[fx.Node, ...]:
    bounds = (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)
    return tuple(bound for bound in bounds if isinstance(bound, fx.Node))
