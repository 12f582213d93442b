"""Resize a program's tensors, modules, and shape constants after units are removed or copied.

`keep` gives the number of copies of each unit afterwards; the new size of a dim is the sum over its ids. Parameters
and buffers are indexed, modules are refitted, and size arguments that refer to a labeled dim are rewritten
(`rewriting.size_args`); the batch and every other number stay unchanged. If a unit has several consecutive entries,
such as the channels of a head or the positions of a flattened map, its copies follow as a whole: `a1 a2` becomes
`a1 a2 a1 a2`.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxsurgery.analysis.refit import is_weight_normed, refit
from fxsurgery.analysis.structure import Counts, Structure, is_unchanged
from fxsurgery.edit import Editor
from fxsurgery.errors import StructureError
from fxsurgery.lineage import Origin
from fxsurgery.ops import registry
from fxsurgery.ops.labels import Labels
from fxsurgery.ops.module_sizes import Sizes
from fxsurgery.ops.movement import UNFLATTEN
from fxsurgery.ops.union_find import Ids
from fxsurgery.rewriting.size_args import rewrite_arguments

Shares = Mapping[str, tuple[int, Tensor]]
"""For each parameter, by name: a dim, and the factor of each new entry along it."""


def resize(edit: Editor, facts: Structure, keep: Counts, shares: Shares | None = None) -> None:
    """Resize the program to `keep` copies of each unit.

    Args:
        edit: editor of the program.
        facts: structure of its program.
        keep: number of copies of each unit, over the ids of `facts`; a boolean mask if units are only removed.
        shares: weights of the copies in the consumers of copied units.

    Raises:
        StructureError: a tensor would be left without any entry along a dim.
    """
    if empty := facts.empty_dims(keep):
        names = dict.fromkeys(g.name for g in facts.groups for unit in empty if unit in g.units)
        raise StructureError(
            f"no channel would remain in {', '.join(names) or f'{len(empty)} tensors'}; keep at least one of each"
        )
    sliced = _slice_tensors(edit, facts, keep, shares or {})
    _refit_modules(edit, facts, sliced, keep)
    rewrite_arguments(edit, facts, keep)


def places(ids: Ids, counts: Counts) -> tuple[Ids, Ids]:
    """Return, for each entry of a resized dim, its old index and its copy number, counted from 0."""
    if counts.dtype == np.bool_ or not (counts[ids] > 1).any():
        kept = np.flatnonzero(counts[ids])
        return kept, np.zeros_like(kept)
    starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    runs = [(a, b, int(counts[ids[a]])) for a, b in zip(starts, np.r_[starts[1:], len(ids)], strict=True)]
    index = [np.tile(np.arange(a, b), times) for a, b, times in runs]
    copy = [np.repeat(np.arange(times), b - a) for a, b, times in runs]
    return np.concatenate(index), np.concatenate(copy)


def _slice_tensors(edit: Editor, facts: Structure, keep: Counts, shares: Shares) -> dict[str, Tensor]:
    """Return every parameter and buffer that changes, indexed; a tied one under each of its names."""
    everywhere = _tensors(edit.program.graph_module)
    tensors = dict(everywhere)
    by_id, known = dict[int, Tensor](), dict[bytes, Tensor | None]()
    for name, dims in facts.tensors.items():
        tensor, old = tensors[name], tensors[name]
        found = {dim: index for dim, ids in dims.items() if (index := _index(ids, keep, known)) is not None}
        for dim, index in found.items():
            tensor = tensor.detach().index_select(dim, index.to(tensor.device))
        if name in shares:
            dim, share = shares[name]
            tensor = tensor * share.to(tensor).reshape([-1 if d == dim else 1 for d in range(tensor.dim())])
        if tensor is not old:
            # Create one new parameter for all uses of the old one, so that tied weights stay tied.
            is_parameter = isinstance(old, nn.Parameter)
            by_id[id(old)] = nn.Parameter(tensor, old.requires_grad) if is_parameter else tensor
            if is_parameter:
                edit.record_origin(name, Origin(name, found))
    return {name: by_id[id(t)] for name, t in everywhere if id(t) in by_id}


def _index(ids: Ids, keep: Counts, known: dict[bytes, Tensor | None]) -> Tensor | None:
    """Return the indices kept along `ids`, or `None` for all. Cached, since a norm and its neighbors share vectors."""
    if (key := ids.tobytes()) not in known:
        known[key] = None if is_unchanged(keep, ids) else torch.from_numpy(places(ids, keep)[0])
    return known[key]


def _tensors(root: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the parameters and buffers of a module under all their names."""
    return [
        (f"{path}.{name}" if path else name, tensor)
        for path, module in root.named_modules(remove_duplicate=False)
        for own in (module._parameters, module._buffers)  # noqa: SLF001 -- one traversal, where the public API takes four
        for name, tensor in own.items()
        if tensor is not None
    ]


def _refit_modules(edit: Editor, facts: Structure, sliced: Mapping[str, Tensor], keep: Counts) -> None:
    called = {str(n.target): n for n in edit.program.nodes if n.op == "call_module"}
    for path, own in _by_module(called, sliced).items():
        module = edit.program.module(called[path])
        sizes = _sizes(facts, called[path], module, keep) if _states_sizes(module, called[path], facts) else Sizes()
        if own or sizes:
            edit.replace_module(path, refit(module, own, sizes))
    read = {str(n.target) for n in edit.program.nodes if n.op == "get_attr"}
    for path in sorted(read & set(sliced)):
        edit.replace_tensor(path, sliced[path])


def _by_module(paths: Mapping[str, fx.Node], sliced: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return the sliced tensors of each called module, by their names in the module."""
    own = {path: dict[str, Tensor]() for path in paths}
    for name, tensor in sliced.items():
        path = name.rpartition(".")[0]
        while path and path not in own:
            path = path.rpartition(".")[0]
        if path:
            own[path][name.removeprefix(f"{path}.")] = tensor
    return own


def _states_sizes(module: nn.Module, node: fx.Node, facts: Structure) -> bool:
    """Return True if a module may hold sizes that do not follow from its tensors."""
    operator = registry.of_module(module)
    has_sizes = operator is not None and (operator.statistics is not None or operator is UNFLATTEN)
    return has_sizes or node.name in facts.group_width or is_weight_normed(module)


def _sizes(facts: Structure, node: fx.Node, module: nn.Module, keep: Counts) -> Sizes:
    """Return the new values of the sizes that a module stores besides its tensors."""
    entering = facts.values[node.all_input_nodes[0].name] if node.all_input_nodes else None
    if not isinstance(entering, Labels):
        return Sizes()
    if isinstance(module, nn.Unflatten):
        return _unflattened(module, facts, facts.values[node.name], keep)
    by_dim = {d: ids for d, ids in facts.along(entering).items() if not is_unchanged(keep, ids)}
    statistics = None if (operator := registry.of_module(module)) is None else operator.statistics
    if statistics == "trailing":
        first = len(entering.shape) - len(module.normalized_shape)  # type: ignore[arg-type]
        if any(d >= first for d in by_dim):
            shape = [int(keep[by_dim[d]].sum()) if d in by_dim else n for d, n in enumerate(entering.shape)]
            return Sizes(normalized=tuple(shape[first:]))
    if is_weight_normed(module):
        rows = facts.tensors.get(f"{node.target}.parametrizations.weight.original1", {}).get(0)
        left = None if rows is None or is_unchanged(keep, rows) else torch.from_numpy(places(rows, keep)[0])
        return Sizes(groups=_groups(facts, node, by_dim, keep), rows=left)
    if 1 not in by_dim:
        return Sizes()
    channels = int(keep[by_dim[1]].sum()) if statistics in {"channel", "instance", "group"} else None
    return Sizes(groups=_groups(facts, node, by_dim, keep), channels=channels)


def _unflattened(module: nn.Unflatten, facts: Structure, leaving: Labels, keep: Counts) -> Sizes:
    """Return the new constant sizes of an `Unflatten`."""
    left = {d: int(keep[ids].sum()) for d, ids in facts.along(leaving).items() if not is_unchanged(keep, ids)}
    first = int(module.dim) % (len(leaving.shape) - len(module.unflattened_size) + 1)
    sizes = [n if n == -1 else left.get(first + d, n) for d, n in enumerate(map(int, module.unflattened_size))]
    return Sizes(unflattened=tuple(sizes)) if left else Sizes()


def _groups(facts: Structure, node: fx.Node, by_dim: Mapping[int, Ids], keep: Counts) -> int | None:
    """Return the new number of groups of a conv or norm that loses whole groups, or `None` if it is unchanged."""
    if 1 not in by_dim or node.name not in facts.group_width:
        return None
    return int(keep[by_dim[1]].sum()) // facts.group_width[node.name]
