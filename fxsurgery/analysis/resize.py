"""Bring a program's tensors, modules and shape constants to what survives a removal.

The new size of a dim is the number of its surviving ids. Parameters and buffers are sliced, modules are
refitted, and a node's size arguments are rewritten where they name a labelled dim; the batch and every
other number stay as they are. Nothing is decided here: `keep` says what survives.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxsurgery.analysis.labels import Labels
from fxsurgery.analysis.shapes import is_sized, refit, target_name
from fxsurgery.analysis.structure import Mask, Structure, structure
from fxsurgery.edit import Editor
from fxsurgery.errors import StructureError
from fxsurgery.program import Program


def resize(edit: Editor, keep: Mask) -> None:
    """Edit the program down to the ids of `keep`.

    Raises:
        StructureError: a tensor would be left without any entry along a dim.
    """
    program = edit.program
    facts = structure(program)
    if empty := facts.emptied(keep):
        names = dict.fromkeys(g.name for g in facts.groups for unit in empty if unit in g.units)
        raise StructureError(f"no channel would be left of {', '.join(names) or f'{len(empty)} tensors'}")
    sliced = _slice_tensors(program, facts, keep)
    _refit_modules(edit, facts, sliced, keep)
    for node in program.nodes:
        rewrite = _REWRITES.get(target_name(node)) if is_sized(node) else None
        if rewrite is None or not isinstance(source := node.args[0], fx.Node):
            continue
        entering = facts.values[source.name]
        if isinstance(entering, Labels):
            rewrite(_Site(edit, facts, node, entering, facts.values[node.name], keep))
            for number in node.all_input_nodes:
                if _is_stale(facts, number, keep):
                    edit.fix_number(node, number, facts.values[number.name])


def _is_stale(facts: Structure, number: fx.Node, keep: Mask) -> bool:
    """Whether a number that the graph computes would change with a dim that loses something.

    Where it stood for that dim, it was rewritten; what is left of it means the old size.
    """
    for tensor, dims in facts.numbers.get(number.name, ()):
        ids = facts.along(facts.values[tensor])
        if any(d in ids and not keep[ids[d]].all() for d in dims):
            return isinstance(facts.values[number.name], int)
    return False


def _slice_tensors(program: Program, facts: Structure, keep: Mask) -> dict[str, Tensor]:
    """Every parameter and buffer that shrinks, sliced; a tied one under each of its names."""
    root = program.graph_module
    tensors = dict(root.named_parameters()) | dict(root.named_buffers())
    by_id = dict[int, Tensor]()
    for name, dims in facts.tensors.items():
        tensor = tensors[name]
        for dim, ids in dims.items():
            if not keep[ids].all():
                index = torch.from_numpy(np.flatnonzero(keep[ids])).to(tensor.device)
                tensor = tensor.detach().index_select(dim, index)
        if tensor is not (old := tensors[name]):
            # One new parameter for all places that share the old one: tied weights stay tied.
            is_parameter = isinstance(old, nn.Parameter)
            by_id[id(old)] = nn.Parameter(tensor, old.requires_grad) if is_parameter else tensor
    named = [*root.named_parameters(remove_duplicate=False), *root.named_buffers(remove_duplicate=False)]
    return {name: by_id[id(t)] for name, t in named if id(t) in by_id}


def _refit_modules(edit: Editor, facts: Structure, sliced: Mapping[str, Tensor], keep: Mask) -> None:
    called = {str(n.target): n for n in edit.program.nodes if n.op == "call_module"}
    for path, node in called.items():
        own = {name.removeprefix(f"{path}."): t for name, t in sliced.items() if name.startswith(f"{path}.")}
        groups = _groups(facts, node, keep)
        if own or groups is not None:
            edit.replace_module(path, refit(edit.program.module(node), own, groups))
    read = {str(n.target) for n in edit.program.nodes if n.op == "get_attr"}
    for path in sorted(read & set(sliced)):
        edit.replace_tensor(path, sliced[path])


def _groups(facts: Structure, node: fx.Node, keep: Mask) -> int | None:
    """The new number of groups of a conv or norm that loses whole groups; `None` where it keeps them."""
    entering = facts.values[node.all_input_nodes[0].name] if node.all_input_nodes else None
    ids = facts.along(entering).get(1) if isinstance(entering, Labels) else None
    if ids is None or node.name not in facts.group_width or keep[ids].all():
        return None
    return int(keep[ids].sum()) // facts.group_width[node.name]


@dataclass(frozen=True)
class _Site:
    """A node whose size arguments may have to change."""

    edit: Editor
    facts: Structure
    node: fx.Node
    entering: Labels
    leaving: Any
    keep: Mask

    def size(self, labels: Labels, dim: int) -> int:
        """The surviving size of a dim."""
        ids = self.facts.along(labels).get(dim)
        return labels.shape[dim] if ids is None else int(self.keep[ids].sum())

    def shrinks(self, labels: Labels, dim: int) -> bool:
        """Whether a dim loses anything."""
        return self.size(labels, dim) != labels.shape[dim]

    def argument(self, position: int, name: str, default: Any = None) -> Any:  # noqa: ANN401
        """An argument of the node, given by position or name."""
        if len(self.node.args) > position:
            return self.node.args[position]
        return self.node.kwargs.get(name, default)

    def number(self, value: Any, default: int) -> int:  # noqa: ANN401
        """A bound of a slice: a constant, a number that the graph computed, or absent."""
        if isinstance(value, fx.Node):
            value = self.facts.values[value.name]
        return default if value is None else int(value)

    def surviving(self, dim: int, index: int) -> int:
        """How many entries of `dim` survive before `index`."""
        ids = self.facts.along(self.entering)[dim]
        size = len(ids)
        bounded = min(max(index + size if index < 0 else index, 0), size)
        return int(self.keep[ids[:bounded]].sum())


def _shape(site: _Site) -> None:
    """`view`, `reshape`, `expand`: sizes as one sequence or one by one."""
    listed = len(site.node.args) > 1 and isinstance(site.node.args[1], (list, tuple))
    named = next((k for k in ("shape", "size") if k in site.node.kwargs), None)
    sizes: Any = site.node.kwargs[named] if named else site.node.args[1] if listed else site.node.args[1:]
    new = [
        site.size(site.leaving, dim) if size != -1 and site.shrinks(site.leaving, dim) else size
        for dim, size in enumerate(sizes)
    ]
    if new == list(sizes):
        return
    if named or listed:
        site.edit.set_argument(site.node, named or 1, new)
        return
    for position, size in enumerate(new, start=1):
        site.edit.set_argument(site.node, position, size)


def _pieces(site: _Site) -> None:
    """`chunk` and `split` of a labelled dim: into the surviving part of each piece."""
    dim = site.argument(2, "dim", 0) % len(site.entering.shape)
    if site.shrinks(site.entering, dim):
        sizes = [site.size(piece, dim) for piece in site.leaving]
        site.edit.retarget(site.node, torch.split, (site.node.args[0], sizes, dim))


def _index(site: _Site) -> None:
    """`x[:, a:b]`: the bounds move to the surviving entries."""
    given = site.node.args[1]
    items: list[Any] = list(given) if isinstance(given, (list, tuple)) else [given]
    if any(item is Ellipsis for item in items):
        at = next(n for n, item in enumerate(items) if item is Ellipsis)
        named = sum(item is not None for item in items) - 1
        items[at : at + 1] = [slice(None)] * (len(site.entering.shape) - named)
    dim, new = 0, list[Any]()
    for item in items:
        new.append(_moved_item(site, dim, item) if item is not None else None)
        dim += item is not None
    if any(site.shrinks(site.entering, d) for d in range(len(site.entering.shape))) and new != items:
        site.edit.set_argument(site.node, 1, tuple(new))


def _moved_item(site: _Site, dim: int, item: Any) -> Any:  # noqa: ANN401
    if not site.shrinks(site.entering, dim) or item == slice(None):
        return item
    if isinstance(item, int):
        return site.surviving(dim, item)
    if isinstance(item, slice) and item.step in {None, 1}:
        size = site.entering.shape[dim]
        start, stop = site.number(item.start, 0), site.number(item.stop, size)
        return slice(site.surviving(dim, start), site.surviving(dim, stop))
    return item


def _narrow(site: _Site) -> None:
    dim = site.argument(1, "dim") % len(site.entering.shape)
    if site.shrinks(site.entering, dim):
        start = site.number(site.argument(2, "start"), 0) % site.entering.shape[dim]
        stop = start + site.number(site.argument(3, "length"), 0)
        low, high = site.surviving(dim, start), site.surviving(dim, stop)
        site.edit.retarget(site.node, torch.narrow, (site.node.args[0], dim, low, high - low))


def _unflatten(site: _Site) -> None:
    dim = site.argument(1, "dim") % len(site.entering.shape)
    sizes = site.argument(2, "sizes", site.node.kwargs.get("unflattened_size"))
    new = [
        site.size(site.leaving, dim + n) if size != -1 and site.shrinks(site.leaving, dim + n) else size
        for n, size in enumerate(sizes)
    ]
    if new != list(sizes):
        site.edit.retarget(site.node, torch.unflatten, (site.node.args[0], dim, new))


def _pad(site: _Site) -> None:
    """Padded channels are entries like any other: count the surviving ones at each end."""
    amounts = list(site.argument(1, "pad"))
    ndim = len(site.entering.shape)
    for dim, ids in site.facts.along(site.leaving).items():
        start = 2 * (ndim - 1 - dim)
        if start < len(amounts) and (amounts[start] or amounts[start + 1]):
            low, high = amounts[start], amounts[start + 1]
            amounts[start] = int(site.keep[ids[:low]].sum())
            amounts[start + 1] = int(site.keep[ids[len(ids) - high :]].sum())
    if amounts != list(site.argument(1, "pad")):
        site.edit.set_argument(site.node, 1 if len(site.node.args) > 1 else "pad", amounts)


_REWRITES: dict[str, Callable[[_Site], None]] = {
    **dict.fromkeys(("view", "reshape", "expand"), _shape),
    **dict.fromkeys(("chunk", "split", "split_with_sizes"), _pieces),
    "getitem": _index,
    "narrow": _narrow,
    "unflatten": _unflatten,
    "pad": _pad,
}
