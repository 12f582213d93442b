"""Conversion of a model's output to structures that PyTorch's pytree knows."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

CONSTANT_TYPES = (
    int, float, complex, bool, str, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""Types that may appear among a node's arguments besides tensors."""


def plain_structure(returned: Any, unsupported: Callable[[str], Exception]) -> Any:
    """Return the output with containers of unknown types (mappings, dataclasses) converted to dicts.

    Args:
        returned: what the model returned.
        unsupported: creates the error to raise for a leaf that is neither a tensor nor a constant.
    """
    leaves, spec = pytree.tree_flatten(returned)
    plain = [_plain(leaf, unsupported) for leaf in leaves]
    return pytree.tree_unflatten(plain, spec)


def _plain(leaf: Any, unsupported: Callable[[str], Exception]) -> Any:
    if isinstance(leaf, (Tensor, *CONSTANT_TYPES)):
        return leaf
    if isinstance(leaf, Mapping):
        return {k: plain_structure(v, unsupported) for k, v in leaf.items()}
    fields = getattr(leaf, "__dataclass_fields__", None)
    if fields is not None:
        return {k: plain_structure(getattr(leaf, k), unsupported) for k in fields}
    kind = type(leaf).__name__
    if "cache" in kind.lower():
        raise unsupported(
            f"the output contains a {kind} with keys and values of earlier tokens; call the model with use_cache=False"
        )
    raise unsupported(
        f"the output contains an object of type {kind}, which is neither a tensor nor a dict, tuple, list or "
        "dataclass of tensors"
    )


def unknown_types(returned: Any) -> list[str]:
    """Return the names of the types in an output that become dicts."""
    leaves = pytree.tree_leaves(returned)
    return list(
        dict.fromkeys(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (Tensor, *CONSTANT_TYPES)))
    )
