"""The tensors of a saved program: checked against what was declared before one is read, then put in their places."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, fx, nn

from fxsurgery.errors import RunError
from fxsurgery.saving.module_refs import is_taken, submodule
from fxsurgery.saving.schema import StateEntry
from fxsurgery.saving.tensors import named_state


def check_sizes(
    root: nn.Module, entries: list[StateEntry], header: Mapping[str, torch.Size], resized: Collection[str]
) -> None:
    """Refuse tensors that do not fit what was declared, before one is read.

    Args:
        root: the modules, with tensors of the sizes that were declared.
        entries: every tensor of the program.
        header: the sizes of those that the file has.
        resized: paths of modules of the user's whose tensors have been cut: these fit with as many dims.

    Raises:
        RunError: one is missing, of another size, or of no use.
    """
    wanted = {name: tensor.shape for name, tensor in named_state(root)}
    known = set[str]()
    for entry in entries:
        _require_there(entry, header, known)
        known.add(entry.name)
        there = header[entry.of or entry.name]
        declared = wanted.get(entry.name, there)
        cut = entry.name.rpartition(".")[0] in resized and len(declared) == len(there)
        if declared != there and not cut:
            raise RunError(
                f"`{entry.name}` is {tuple(there)} in the weights and {tuple(declared)} in the graph; pass the "
                "weights of this model"
            )
    if missing := sorted(wanted.keys() - known):
        raise RunError(f"there are no weights for {', '.join(missing[:4])}; pass the weights of the whole model")
    if odd := sorted(header.keys() - {entry.name for entry in entries if not entry.of}):
        raise RunError(f"damaged: nothing in the graph is {', '.join(odd)[:60]}")


def _require_there(entry: StateEntry, header: Mapping[str, torch.Size], known: Collection[str]) -> None:
    if entry.name in known:
        raise RunError(f"damaged: `{entry.name}` is there twice")
    if (entry.of or entry.name) not in header or (entry.of and entry.of not in known):
        raise RunError(f"there are no weights for {entry.name}; pass the weights of the whole model")


def add_state(root: nn.Module, entries: list[StateEntry], weights: Mapping[str, Tensor]) -> None:
    """Put the tensors in their places.

    Raises:
        RunError: something else is there.
    """
    made = dict[str, Tensor]()
    for entry in entries:
        tensor = made[entry.of] if entry.of else weights[entry.name]
        if entry.kind == "parameter" and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=bool(entry.trains))
        made[entry.name] = tensor
        _put(root, entry.name, tensor, persistent=entry.persistent)


def _put(root: nn.Module, name: str, tensor: Tensor, *, persistent: bool) -> None:
    owner, _, leaf = name.rpartition(".")
    module = submodule(root, owner)
    if module is None:
        raise RunError(f"damaged: `{name}` is part of what is not there")
    if leaf in module._parameters or leaf in module._buffers:  # noqa: SLF001 -- no other way to ask
        kept = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers  # noqa: SLF001
        if leaf not in kept:
            raise RunError(f"damaged: `{name}` is no {'parameter' if kept is module._parameters else 'buffer'}")  # noqa: SLF001
    elif is_taken(module, leaf) or leaf in module._modules:  # noqa: SLF001
        raise RunError(f"damaged: `{name}` is no tensor")
    if isinstance(tensor, nn.Parameter):
        setattr(module, leaf, tensor)
    elif leaf in module._buffers:  # noqa: SLF001
        module._buffers[leaf] = tensor  # noqa: SLF001 -- setattr would refuse another type
    else:
        module.register_buffer(leaf, tensor, persistent=persistent)


def check_targets(root: nn.Module, graph: fx.Graph) -> None:
    """Refuse a graph that calls what is no layer, or reads what is no tensor.

    Raises:
        RunError: it does; it says which node.
    """
    for node in graph.nodes:
        if node.op == "call_module":
            module = submodule(root, str(node.target))
            if module is None or type(module) in {nn.Module, nn.ModuleList, nn.ModuleDict}:
                raise RunError(
                    f"the node `{node.name}` calls `{node.target}`, which is no layer; capture the model again"
                )
        elif node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            module = submodule(root, owner)
            tensors = {} if module is None else {**module._parameters, **module._buffers}  # noqa: SLF001
            if module is None or (leaf != "training" and tensors.get(leaf) is None):
                raise RunError(
                    f"the node `{node.name}` reads `{node.target}`, which is no tensor; capture the model again"
                )
