"""Replacement of a library's own batch norms, such as those with a built-in activation, by torch's.

If the forward of a subclass of `BatchNorm` calls `F.batch_norm` with the module's own tensors, that call computes what
`nn.BatchNorm2d.forward` does. The node then calls the module, whose class becomes torch's, so that it counts batches
and follows the mode by itself. Operations of the subclass before and after the call are nodes of their own.
"""

import inspect
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch
from torch.nn.modules.batchnorm import _BatchNorm

_SIGNATURE = inspect.signature(F.batch_norm)
_TENSORS = ("running_mean", "running_var", "weight", "bias")


def lift_batch_norms(graph: fx.Graph, model: nn.Module) -> set[str]:
    """Replace `F.batch_norm` calls by calls of the modules of `model` that own the tensors; return their paths."""
    lifted = set[str]()
    for node in list(graph.nodes):
        if node.target is F.batch_norm and (path := _owner(node, model)):
            with graph.inserting_before(node):
                call = graph.call_module(path, (_call_arguments(node)["input"],))
            call.meta = node.meta
            node.replace_all_uses_with(call)
            graph.erase_node(node)
            lifted.add(path)
    counters = {f"{path}.num_batches_tracked" for path in lifted}
    for node in reversed(list(graph.nodes)):
        counts = node.target == "add_" and isinstance(node.args[0], fx.Node) and node.args[0].target in counters
        tensor = node.op == "get_attr" and str(node.target).rpartition(".")[0] in lifted
        if counts or (tensor and not node.users):
            graph.erase_node(node)
    return lifted


def restore_plain_norms(graph: fx.Graph, model: nn.Module, lifted: set[str]) -> None:
    """Change the class of the lifted modules to torch's; move their stateless children next to them."""
    moved = dict[str, str]()
    for path in sorted(lifted):
        module = model.get_submodule(path)
        module.__class__ = _plain_type(module)
        parent, _, name = path.rpartition(".")
        for inner, child in list(module.named_children()):
            if not child.state_dict():
                delattr(module, inner)
                model.get_submodule(parent).add_module(f"{name}_{inner}", child)
                moved[f"{path}.{inner}"] = f"{path}_{inner}"
    for node in graph.nodes:
        for old, new in moved.items():
            if node.op in {"call_module", "get_attr"} and f"{node.target}.".startswith(f"{old}."):
                node.target = new + str(node.target)[len(old) :]


def _owner(node: fx.Node, model: nn.Module) -> str:
    """Return the path of the module whose tensors and settings the call uses; empty if there is none."""
    arguments = _call_arguments(node)
    mean = arguments["running_mean"]
    path = str(mean.target).rpartition(".")[0] if isinstance(mean, fx.Node) and mean.op == "get_attr" else ""
    if not path or not isinstance(module := model.get_submodule(path), _BatchNorm):
        return ""
    is_owned = all(_is_own(arguments[name], f"{path}.{name}", getattr(module, name)) for name in _TENSORS)
    same = (arguments["eps"], arguments["momentum"]) == (module.eps, module.momentum)
    return path if is_owned and same and isinstance(arguments["training"], bool) else ""


def _call_arguments(node: fx.Node) -> dict[str, Any]:
    found = _SIGNATURE.bind(*node.args, **node.kwargs)
    found.apply_defaults()
    return found.arguments


def _is_own(arguments: object, path: str, tensor: torch.Tensor | None) -> bool:
    return arguments is None if tensor is None else isinstance(arguments, fx.Node) and arguments.target == path


def _plain_type(module: nn.Module) -> type[nn.Module]:
    return next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn"))
