"""Torch calls that a graph cannot repeat, and the remedy for each."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxsurgery.ops import registry

UNREGISTERED = (
    "a module or parameter is used that is not registered with the model",
    "Store it as an attribute, or in nn.ModuleList or nn.ParameterList instead of a plain list",
)
"""The fact and remedy for a parameter without a name."""


def unrepeatable(func: Any, name: str, args: tuple[Any, ...]) -> tuple[str, str] | None:
    """Return why a call of `func` cannot be a node, and the remedy; None if it can."""
    operator = registry.of_function(func) or registry.of_method(name)
    if operator is not None and operator.unsupported is not None:
        return operator.unsupported.what, operator.unsupported.remedy
    # Requesting the gradient of a value does not change what is computed.
    only_requests = name == "requires_grad_" or (name == "__set__" and func.__self__.__name__ == "requires_grad")
    only_requests = only_requests and (len(args) == 1 or args[1] is True)
    if name in {"__set__", "requires_grad_"} and not only_requests:
        return f"Tensor.{name} is called, which changes the tensor's own state", "Create a new tensor"
    return None


def sized_by_values(name: str, args: tuple[Any, ...]) -> bool:
    """Return True if the size of a call's result depends on values, as with boolean masks and nonzero."""
    if name == "__getitem__":
        return any(isinstance(x, Tensor) and x.dtype is torch.bool for x in pytree.tree_leaves(args[1]))
    operator = registry.of_method(name)
    picks = operator is not None and operator.sized_by_values
    return picks or name == "nms" or (name == "where" and len(args) == 1)  # nms is torchvision's, known by name only


def iterates(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Return True if a call returns each entry along the first dim of a tensor, as a loop over it does."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return name == "__iter__" or (name == "unbind" and dim == 0)
