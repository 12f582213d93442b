"""What a model returns, as structures that PyTorch knows."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

CONSTANTS = (
    int, float, complex, bool, str, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""What may stand among a node's arguments beside tensors."""


def plain_structure(returned: Any, offence: Callable[[str], Exception]) -> Any:
    """The output as tuples, lists and dicts where PyTorch does not know its type."""
    leaves, spec = pytree.tree_flatten(returned)
    plain = [_plain(leaf, offence) for leaf in leaves]
    return pytree.tree_unflatten(plain, spec)


def _plain(leaf: Any, offence: Callable[[str], Exception]) -> Any:
    if isinstance(leaf, (Tensor, *CONSTANTS)):
        return leaf
    if isinstance(leaf, Mapping):
        return {k: plain_structure(v, offence) for k, v in leaf.items()}
    fields = getattr(leaf, "__dataclass_fields__", None)
    if fields is not None:
        return {k: plain_structure(getattr(leaf, k), offence) for k in fields}
    kind = type(leaf).__name__
    if "cache" in kind.lower():
        raise offence(f"the output holds a {kind}, the keys and values of earlier tokens: call it with use_cache=False")
    raise offence(f"the output holds a {kind}, which is neither a tensor nor a dict, tuple, list or dataclass of them")


def unknown_types(returned: Any) -> list[str]:
    """The types in an output that become dicts."""
    leaves = pytree.tree_leaves(returned)
    return list(dict.fromkeys(type(leaf).__name__ for leaf in leaves if not isinstance(leaf, (Tensor, *CONSTANTS))))
