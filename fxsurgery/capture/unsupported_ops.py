"""Torch calls that no graph can repeat, and what to do about each."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fxsurgery.ops import registry

UNREGISTERED = (
    "a module or parameter is used that is not registered in the model",
    "Keep it as an attribute, in nn.ModuleList or in nn.ParameterList, not in a plain list",
)
"""What a tensor tells that is a parameter and has no name."""


def unrepeatable(func: Any, name: str, args: tuple[Any, ...]) -> tuple[str, str] | None:
    """Why a call of `func` cannot be a node, and what to do; `None` where it can."""
    operator = registry.of_function(func) or registry.of_method(name)
    if operator is not None and operator.refused is not None:
        return operator.refused.what, operator.refused.remedy
    # To ask for the gradient of a value changes nothing of what is computed.
    asks = name == "requires_grad_" or (name == "__set__" and func.__self__.__name__ == "requires_grad")
    asks = asks and (len(args) == 1 or args[1] is True)
    if name in {"__set__", "requires_grad_"} and not asks:
        return f"Tensor.{name} is called, which acts on the tensor's own state", "Make a new tensor"
    return None


def sized_by_values(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the size of a call's result depends on values: a mask picks, or non-zeros are looked for."""
    if name == "__getitem__":
        return any(isinstance(x, Tensor) and x.dtype is torch.bool for x in pytree.tree_leaves(args[1]))
    operator = registry.of_method(name)
    picks = operator is not None and operator.sized_by_values
    return picks or name == "nms" or (name == "where" and len(args) == 1)  # torchvision's is known by its name alone


def goes_over(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call gives each entry along the first dim of a tensor, as a loop over it does."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return name == "__iter__" or (name == "unbind" and dim == 0)
