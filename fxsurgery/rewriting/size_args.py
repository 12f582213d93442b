"""Rewrite the size arguments of a program's nodes after units are removed or copied.

A size is a constant or a number that the graph computes. A computed size stays if it evaluates correctly by itself
(`x.size(1)` of a tensor that shrinks too); if the batch is folded into it, it is scaled by the surviving fraction;
otherwise it is replaced by the surviving size.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fxsurgery.analysis.shapes import is_rewritten, sizes_of
from fxsurgery.analysis.structure import Counts, Structure
from fxsurgery.edit import Editor
from fxsurgery.ops.facets import OperandArgument, SizeRule
from fxsurgery.ops.labels import Labels
from fxsurgery.rewriting.surviving_sizes import SurvivingSizes


def rewrite_arguments(edit: Editor, facts: Structure, keep: Counts) -> None:
    """Update every size argument of the program's nodes."""
    after = SurvivingSizes(facts, keep)
    for node in edit.program.nodes:
        sizes = sizes_of(node) if is_rewritten(node) else None
        if sizes is None or not isinstance(source := node.args[0], fx.Node):
            continue
        entering = facts.values[source.name]
        if isinstance(entering, Labels):
            site = _Site(edit, after, node, sizes.arguments, entering, facts.values[node.name])
            _REWRITES[sizes.rule](site)
            for number in node.all_input_nodes:
                if number not in site.settled and after.is_stale(number):
                    edit.fix_number(node, number, facts.values[number.name])


@dataclass
class _Site:
    """A node whose size arguments may have to change."""

    edit: Editor
    after: SurvivingSizes
    node: fx.Node
    declared: Sequence[OperandArgument]
    """The arguments that hold sizes, as `SizeRule` lists them."""
    entering: Labels
    leaving: Any
    settled: set[fx.Node] = field(default_factory=set)
    """Number inputs that have been handled."""

    def size(self, labels: Labels, dim: int) -> int:
        """Return the surviving size of a dim."""
        return self.after.size(labels, dim)

    def shrinks(self, labels: Labels, dim: int) -> bool:
        """Return True if a dim loses entries."""
        return self.size(labels, dim) != labels.shape[dim]

    def argument(self, place: int) -> Any:
        """Return the value of a declared argument."""
        return self.declared[place].of_node(self.node)

    def put(self, place: int, value: Any) -> None:
        """Set a declared argument, in the position or keyword where it was given."""
        self.edit.set_argument(self.node, self.declared[place].key(self.node), value)

    def number(self, value: Any, default: int) -> int:
        """Return a slice bound: a constant, a number computed by the graph, or the default."""
        if isinstance(value, fx.Node):
            self.settled.add(value)
            value = self.after.facts.values[value.name]
        return default if value is None else int(value)

    def surviving(self, dim: int, index: int) -> int:
        """Return the number of surviving entries of `dim` before `index`."""
        ids = self.after.facts.along(self.entering)[dim]
        size = len(ids)
        bounded = min(max(index + size if index < 0 else index, 0), size)
        return int(self.after.keep[ids[:bounded]].sum())

    def sized(self, value: Any, labels: Labels, dim: int) -> Any:
        """Return the new value of an argument that states the size of `dim`."""
        wanted, old = self.size(labels, dim), labels.shape[dim]
        if not isinstance(value, fx.Node):
            return wanted if value == old and value != -1 else value
        self.settled.add(value)
        comes_out = self.after.number(value)
        if comes_out in {wanted, -1}:
            return value
        if self.after.holds_batch(value):
            shared = math.gcd(wanted, comes_out)
            return self.edit.scale_number(self.node, value, wanted // shared, comes_out // shared)
        return wanted


def _shape(site: _Site) -> None:
    """Rewrite `view`, `reshape`, `expand`: sizes as one sequence or as separate arguments."""
    listed = len(site.node.args) > 1 and isinstance(site.node.args[1], (list, tuple))
    named = next((k for k in site.declared[0].names if k in site.node.kwargs), None)
    sizes: Any = site.node.kwargs[named] if named else site.node.args[1] if listed else site.node.args[1:]
    if isinstance(sizes, fx.Node) or (
        len(sizes) == 1 and isinstance(sizes[0], fx.Node) and len(site.leaving.shape) > 1
    ):
        _whole_shape(site, sizes if isinstance(sizes, fx.Node) else sizes[0])
        return
    new = [site.sized(size, site.leaving, dim) for dim, size in enumerate(sizes)]
    if new == list(sizes):
        return
    if named or listed:
        site.edit.set_argument(site.node, named or 1, new)
        return
    for position, size in enumerate(new, start=1):
        site.edit.set_argument(site.node, position, size)


def _whole_shape(site: _Site, shape: fx.Node) -> None:
    """Rewrite `view(y.shape)`: unchanged if y shrinks alike; otherwise list its entries."""
    site.settled.add(shape)
    wanted = [site.size(site.leaving, d) for d in range(len(site.leaving.shape))]
    comes_out = list(site.after.number(shape))
    if comes_out == wanted:
        return
    entries = [
        site.edit.entry(site.node, shape, d) if comes_out[d] == wanted[d] else wanted[d] for d in range(len(wanted))
    ]
    site.edit.set_argument(site.node, 1, entries)


def _pieces(site: _Site) -> None:
    """Rewrite `chunk` and `split` of a labeled dim to the surviving part of each piece."""
    dim = site.argument(1) % len(site.entering.shape)
    if site.shrinks(site.entering, dim):
        sizes = [site.size(piece, dim) for piece in site.leaving]
        site.settled.update(site.node.all_input_nodes[1:])
        site.edit.retarget(site.node, torch.split, (site.node.args[0], sizes, dim))


def _index(site: _Site) -> None:
    """Rewrite `x[:, a:b]`: move the bounds to the surviving entries."""
    given = site.node.args[1]
    items: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if any(item is Ellipsis for item in items):
        at = next(n for n, item in enumerate(items) if item is Ellipsis)
        named = sum(_width(site, item) for item in items) - 1
        items[at : at + 1] = [slice(None)] * (len(site.entering.shape) - named)
    dim, new = 0, list[Any]()
    for item in items:
        new.append(_moved_item(site, dim, item) if item is not None else None)
        dim += _width(site, item)
    if any(site.shrinks(site.entering, d) for d in range(len(site.entering.shape))) and new != items:
        site.edit.set_argument(site.node, 1, tuple(new))


def _width(site: _Site, item: Any) -> int:
    """Return the number of dims that an index item consumes; a mask consumes all of its own."""
    if item is None:
        return 0
    labels = site.after.facts.values[item.name] if isinstance(item, fx.Node) else None
    return 1 if not isinstance(labels, Labels) else max(1, len(labels.shape) * site.after.facts.is_mask(item))


def _moved_item(site: _Site, dim: int, item: Any) -> Any:
    if dim >= len(site.entering.shape) or not site.shrinks(site.entering, dim) or item == slice(None):
        return item
    if isinstance(item, int):
        return site.surviving(dim, item)
    if not isinstance(item, slice):
        return item
    size = site.entering.shape[dim]
    start, stop, step = site.number(item.start, 0), site.number(item.stop, size), site.number(item.step, 1)
    if step == 1:
        return slice(site.surviving(dim, start), site.surviving(dim, stop))
    picked = [n % size for n in range(*slice(start, stop, step).indices(size))]
    ids = site.after.facts.along(site.entering)[dim]
    first = [site.surviving(dim, n) for n in picked]
    return [
        start + n for start, place in zip(first, picked, strict=True) for n in range(int(site.after.keep[ids[place]]))
    ]


def _narrow(site: _Site) -> None:
    dim = site.argument(0) % len(site.entering.shape)
    if site.shrinks(site.entering, dim):
        start = site.number(site.argument(1), 0) % site.entering.shape[dim]
        stop = start + site.number(site.argument(2), 0)
        low, high = site.surviving(dim, start), site.surviving(dim, stop)
        site.edit.retarget(site.node, torch.narrow, (site.node.args[0], dim, low, high - low))


def _select(site: _Site) -> None:
    dim = site.argument(0) % len(site.entering.shape)
    if site.shrinks(site.entering, dim):
        index = site.surviving(dim, site.number(site.argument(1), 0))
        site.edit.retarget(site.node, torch.select, (site.node.args[0], dim, index))


def _unflatten(site: _Site) -> None:
    dim = site.argument(0) % len(site.entering.shape)
    sizes: Sequence[Any] = site.argument(1)
    new = [site.sized(size, site.leaving, dim + n) for n, size in enumerate(sizes)]
    if new != list(sizes):
        site.edit.retarget(site.node, torch.unflatten, (site.node.args[0], dim, new))


def _pad(site: _Site) -> None:
    """Rewrite `pad`: padded channels count as entries, so count the surviving ones at each end."""
    amounts = list(site.argument(0))
    ndim = len(site.entering.shape)
    for dim, ids in site.after.facts.along(site.leaving).items():
        start = 2 * (ndim - 1 - dim)
        if start < len(amounts) and (amounts[start] or amounts[start + 1]):
            low, high = amounts[start], amounts[start + 1]
            amounts[start] = int(site.after.keep[ids[:low]].sum())
            amounts[start + 1] = int(site.after.keep[ids[len(ids) - high :]].sum())
    if amounts != list(site.argument(0)):
        site.put(0, amounts)


def _normalized(site: _Site) -> None:
    """Rewrite `layer_norm(x, shape)`: the trailing dims."""
    shape: Sequence[Any] = site.argument(0)
    first = len(site.entering.shape) - len(shape)
    new = [site.sized(size, site.entering, first + n) for n, size in enumerate(shape)]
    if new != list(shape):
        site.put(0, new)


def _grouped(site: _Site) -> None:
    """Rewrite the group count of a conv or norm that loses whole groups."""
    width = site.after.facts.group_width.get(site.node.name)
    if width is not None and site.shrinks(site.entering, 1):
        groups = site.argument(0)
        if isinstance(groups, fx.Node):
            site.settled.add(groups)
        site.put(0, site.size(site.entering, 1) // width)


def _attention(site: _Site) -> None:
    """Fix the scale of attention at its old value, 1 / sqrt(old width of the queries)."""
    last = len(site.entering.shape) - 1
    if site.shrinks(site.entering, last) and site.argument(0) is None:
        site.edit.set_argument(site.node, "scale", 1.0 / math.sqrt(site.entering.shape[last]))


def _roll(site: _Site) -> None:
    """Rewrite `roll`: shift by the number of surviving entries that wrap around."""
    shifts, dims = site.argument(0), site.argument(1)
    if dims is None:
        return
    several = isinstance(dims, (list, tuple))
    pairs = zip(shifts, dims, strict=True) if several else [(shifts, dims)]
    new = [_shift(site, shift, dim % len(site.entering.shape)) for shift, dim in pairs]
    if new != (list(shifts) if several else [shifts]):
        site.put(0, tuple(new) if several else new[0])


def _shift(site: _Site, shift: Any, dim: int) -> Any:
    if not site.shrinks(site.entering, dim):
        return shift
    size = site.entering.shape[dim]
    return site.size(site.entering, dim) - site.surviving(dim, size - site.number(shift, 0) % size)


_REWRITES: dict[SizeRule, Callable[[_Site], None]] = {
    SizeRule.SHAPE: _shape,
    SizeRule.PIECES: _pieces,
    SizeRule.INDEX: _index,
    SizeRule.RANGE: _narrow,
    SizeRule.ENTRY: _select,
    SizeRule.UNFLATTENED: _unflatten,
    SizeRule.PADDING: _pad,
    SizeRule.NORMALIZED: _normalized,
    SizeRule.GROUPS: _grouped,
    SizeRule.SCALE: _attention,
    SizeRule.SHIFTS: _roll,
}
