"""The tensors of a saved program: checked against the declared sizes before any is read, then added to the modules."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, fx, nn

from fxsurgery.errors import RunError
from fxsurgery.saving.module_refs import is_reserved, submodule
from fxsurgery.saving.schema import StateEntry
from fxsurgery.saving.tensors import named_state


def check_sizes(
    root: nn.Module, entries: list[StateEntry], header: Mapping[str, torch.Size], resized: Collection[str]
) -> None:
    """Check that tensors fit their declared sizes, before any is read.

    Args:
        root: the modules, with tensors of the declared sizes.
        entries: the entry of every tensor of the program.
        header: the shapes of the tensors in the file.
        resized: paths of user modules whose tensors were pruned, for which only the number of dims must match.

    Raises:
        RunError: a tensor is missing, has another size, or is unused.
    """
    declared_shapes = {name: tensor.shape for name, tensor in named_state(root)}
    known = set[str]()
    for entry in entries:
        _require_there(entry, header, known)
        known.add(entry.name)
        saved = header[entry.of or entry.name]
        declared = declared_shapes.get(entry.name, saved)
        cut = entry.name.rpartition(".")[0] in resized and len(declared) == len(saved)
        if declared != saved and not cut:
            raise RunError(
                f"`{entry.name}` has shape {tuple(saved)} in the weights but {tuple(declared)} in the graph; pass the "
                "weights of this model"
            )
    if missing := sorted(declared_shapes.keys() - known):
        raise RunError(f"the weights lack {', '.join(missing[:4])}; pass the weights of the whole model")
    if unused := sorted(header.keys() - {entry.name for entry in entries if not entry.of}):
        raise RunError(f"damaged: the graph does not use the tensors {', '.join(unused)[:60]}")


def _require_there(entry: StateEntry, header: Mapping[str, torch.Size], known: Collection[str]) -> None:
    if entry.name in known:
        raise RunError(f"damaged: `{entry.name}` is a duplicate")
    if (entry.of or entry.name) not in header or (entry.of and entry.of not in known):
        raise RunError(f"the weights lack {entry.name}; pass the weights of the whole model")


def add_state(root: nn.Module, entries: list[StateEntry], weights: Mapping[str, Tensor]) -> None:
    """Add the tensors to their modules.

    Raises:
        RunError: a name is taken by something else.
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
        raise RunError(f"damaged: `{name}` belongs to a module that does not exist")
    if leaf in module._parameters or leaf in module._buffers:  # noqa: SLF001 -- there is no public way
        group = module._parameters if isinstance(tensor, nn.Parameter) else module._buffers  # noqa: SLF001
        if leaf not in group:
            raise RunError(f"damaged: `{name}` is not a {'parameter' if group is module._parameters else 'buffer'}")  # noqa: SLF001
    elif is_reserved(module, leaf) or leaf in module._modules:  # noqa: SLF001
        raise RunError(f"damaged: `{name}` is not a tensor")
    if isinstance(tensor, nn.Parameter):
        setattr(module, leaf, tensor)
    elif leaf in module._buffers:  # noqa: SLF001
        module._buffers[leaf] = tensor  # noqa: SLF001 -- setattr would reject another type
    else:
        module.register_buffer(leaf, tensor, persistent=persistent)


def check_targets(root: nn.Module, graph: fx.Graph) -> None:
    """Check that a graph calls only layers and reads only tensors.

    Raises:
        RunError: it does not; the message names the node.
    """
    for node in graph.nodes:
        if node.op == "call_module":
            module = submodule(root, str(node.target))
            if module is None or type(module) in {nn.Module, nn.ModuleList, nn.ModuleDict}:
                raise RunError(
                    f"the node `{node.name}` calls `{node.target}`, which is not a layer; capture the model again"
                )
        elif node.op == "get_attr":
            owner, _, leaf = str(node.target).rpartition(".")
            module = submodule(root, owner)
            tensors = {} if module is None else {**module._parameters, **module._buffers}  # noqa: SLF001
            if module is None or (leaf != "training" and tensors.get(leaf) is None):
                raise RunError(
                    f"the node `{node.name}` reads `{node.target}`, which is not a tensor; capture the model again"
                )
