"""Torch calls that no graph can repeat, and what to do about each."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_NUMBER = "a tensor value is converted to a Python number (item(), int(), float())", "Keep it a tensor"
_NUMPY = "NumPy is called on a tensor", "Use the torch function of the same name"
_BRANCH = "a Python branch depends on the value of a tensor", "Write it with torch.where or torch.clamp"
VALUES = {
    "__bool__": _BRANCH,
    "__contains__": ("a Python branch depends on the value of a tensor", "Write it with torch.isin and torch.where"),
    "__format__": ("a tensor value is formatted as text", "Take the print or the message out of forward"),
    "__array__": _NUMPY,
    "numpy": _NUMPY,
    **dict.fromkeys("equal allclose is_nonzero".split(), _BRANCH),
} | dict.fromkeys("item tolist __int__ __float__ __index__ __complex__ data_ptr".split(), _NUMBER)
"""Methods that read a value out of a tensor: what that means, and what to do."""

STATE = {"register_hook", "backward", "retain_grad", "set_", "share_memory_", "resize_"}
"""Methods that a graph cannot repeat."""

UNREGISTERED = (
    "a module or parameter is used that is not registered in the model",
    "Keep it as an attribute, in nn.ModuleList or in nn.ParameterList, not in a plain list",
)
"""What a tensor tells that is a parameter and has no name."""

SIZED_BY_VALUES = frozenset("nonzero argwhere masked_select unique unique_consecutive nms".split())
"""Functions whose result is as large as the values say."""


def unrepeatable(func: Any, name: str, args: tuple[Any, ...]) -> tuple[str, str] | None:
    """Why a call of `func` cannot be a node, and what to do; `None` where it can."""
    if name in VALUES:
        return VALUES[name]
    # To ask for the gradient of a value changes nothing of what is computed.
    asks = name == "requires_grad_" or (name == "__set__" and func.__self__.__name__ == "requires_grad")
    asks = asks and (len(args) == 1 or args[1] is True)
    if name in STATE or (name in {"__set__", "requires_grad_"} and not asks):
        return f"Tensor.{name} is called, which acts on the tensor's own state", "Make a new tensor"
    return None


def sized_by_values(name: str, args: tuple[Any, ...]) -> bool:
    """Whether the size of a call's result depends on values: a mask picks, or non-zeros are looked for."""
    if name == "__getitem__":
        return any(isinstance(x, Tensor) and x.dtype is torch.bool for x in pytree.tree_leaves(args[1]))
    return name in SIZED_BY_VALUES or (name == "where" and len(args) == 1)


def goes_over(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Whether a call gives each entry along the first dim of a tensor, as a loop over it does."""
    dim = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return name == "__iter__" or (name == "unbind" and dim == 0)
