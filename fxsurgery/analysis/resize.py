"""Bring a program's tensors, modules and shape constants to what survives a removal.

The new size of a dim is the number of its surviving ids. Parameters and buffers are sliced, modules are
refitted, and a node's size arguments are rewritten where they name a labelled dim (`arguments`); the batch
and every other number stay as they are. Nothing is decided here: `keep` says what survives.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from fxsurgery.analysis.arguments import rewrite_arguments
from fxsurgery.analysis.atoms import Ids
from fxsurgery.analysis.labels import Labels
from fxsurgery.analysis.refit import Sizes, is_weight_normed, refit
from fxsurgery.analysis.structure import Mask, Structure
from fxsurgery.edit import Editor
from fxsurgery.errors import StructureError
from fxsurgery.program import Program


def resize(edit: Editor, facts: Structure, keep: Mask) -> None:
    """Edit the program down to the ids of `keep`, which are those of `facts`.

    Raises:
        StructureError: a tensor would be left without any entry along a dim.
    """
    program = edit.program
    if empty := facts.emptied(keep):
        names = dict.fromkeys(g.name for g in facts.groups for unit in empty if unit in g.units)
        raise StructureError(f"no channel would be left of {', '.join(names) or f'{len(empty)} tensors'}")
    sliced = _slice_tensors(program, facts, keep)
    _refit_modules(edit, facts, sliced, keep)
    rewrite_arguments(edit, facts, keep)


def _slice_tensors(program: Program, facts: Structure, keep: Mask) -> dict[str, Tensor]:
    """Every parameter and buffer that shrinks, sliced; a tied one under each of its names."""
    everywhere = _tensors(program.graph_module)
    tensors = dict(everywhere)
    by_id, left = dict[int, Tensor](), dict[bytes, Tensor | None]()
    for name, dims in facts.tensors.items():
        tensor = tensors[name]
        for dim, ids in dims.items():
            # The vectors of a norm, and the weights around it, have the same units.
            if (known := ids.tobytes()) not in left:
                left[known] = None if keep[ids].all() else torch.from_numpy(np.flatnonzero(keep[ids]))
            if (index := left[known]) is not None:
                tensor = tensor.detach().index_select(dim, index.to(tensor.device))
        if tensor is not (old := tensors[name]):
            # One new parameter for all places that share the old one: tied weights stay tied.
            is_parameter = isinstance(old, nn.Parameter)
            by_id[id(old)] = nn.Parameter(tensor, old.requires_grad) if is_parameter else tensor
    return {name: by_id[id(t)] for name, t in everywhere if id(t) in by_id}


def _tensors(root: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a module under all their names."""
    return [
        (f"{path}.{name}" if path else name, tensor)
        for path, module in root.named_modules(remove_duplicate=False)
        for own in (module._parameters, module._buffers)  # noqa: SLF001 -- one walk for all, where the public way takes four
        for name, tensor in own.items()
        if tensor is not None
    ]


def _refit_modules(edit: Editor, facts: Structure, sliced: Mapping[str, Tensor], keep: Mask) -> None:
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
    """The sliced tensors of each called module, by their names in it."""
    own = {path: dict[str, Tensor]() for path in paths}
    for name, tensor in sliced.items():
        path = name.rpartition(".")[0]
        while path and path not in own:
            path = path.rpartition(".")[0]
        if path:
            own[path][name.removeprefix(f"{path}.")] = tensor
    return own


def _states_sizes(module: nn.Module, node: fx.Node, facts: Structure) -> bool:
    """Whether a module may hold sizes that its tensors do not tell."""
    told = isinstance(module, (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase, nn.Unflatten))
    return told or node.name in facts.group_width or is_weight_normed(module)


def _sizes(facts: Structure, node: fx.Node, module: nn.Module, keep: Mask) -> Sizes:
    """The new sizes that a module holds beside its tensors, where they change."""
    entering = facts.values[node.all_input_nodes[0].name] if node.all_input_nodes else None
    if not isinstance(entering, Labels):
        return Sizes()
    if isinstance(module, nn.Unflatten):
        return _unflattened(module, facts, facts.values[node.name], keep)
    by_dim = {d: ids for d, ids in facts.along(entering).items() if not keep[ids].all()}
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        first = len(entering.shape) - len(module.normalized_shape)
        if any(d >= first for d in by_dim):
            shape = [int(keep[by_dim[d]].sum()) if d in by_dim else n for d, n in enumerate(entering.shape)]
            return Sizes(normalized=tuple(shape[first:]))
    if is_weight_normed(module):
        rows = facts.tensors.get(f"{node.target}.parametrizations.weight.original1", {}).get(0)
        left = None if rows is None or keep[rows].all() else torch.from_numpy(np.flatnonzero(keep[rows]))
        return Sizes(groups=_groups(facts, node, by_dim, keep), rows=left)
    if 1 not in by_dim:
        return Sizes()
    channels = int(keep[by_dim[1]].sum()) if isinstance(module, (nn.GroupNorm, _NormBase)) else None
    return Sizes(groups=_groups(facts, node, by_dim, keep), channels=channels)


def _unflattened(module: nn.Unflatten, facts: Structure, leaving: Labels, keep: Mask) -> Sizes:
    """The sizes into which a dim is split, of those that are written out."""
    left = {d: int(keep[ids].sum()) for d, ids in facts.along(leaving).items() if not keep[ids].all()}
    first = int(module.dim) % (len(leaving.shape) - len(module.unflattened_size) + 1)
    sizes = [n if n == -1 else left.get(first + d, n) for d, n in enumerate(map(int, module.unflattened_size))]
    return Sizes(unflattened=tuple(sizes)) if left else Sizes()


def _groups(facts: Structure, node: fx.Node, by_dim: Mapping[int, Ids], keep: Mask) -> int | None:
    """The new number of groups of a conv or norm that loses whole groups; `None` where it keeps them."""
    if 1 not in by_dim or node.name not in facts.group_width:
        return None
    return int(keep[by_dim[1]].sum()) // facts.group_width[node.name]
