"""A faster `copy.deepcopy` for modules."""

import copy
import functools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, fx, nn

IMMUTABLE_TYPES = frozenset((
    bool, int, float, complex, str, bytes, type(None), type(...), torch.dtype, torch.device, torch.layout,
    torch.memory_format, torch.Size,
))  # fmt: skip
"""Types of immutable values, which are shared between copies and compared by value."""

CONTAINER_TYPES = frozenset((dict, OrderedDict, list, set))
"""Container types of which a module has many empty instances."""


def copy_module(model: nn.Module, memo: dict[Any, Any]) -> nn.Module:
    """Return the same as `copy.deepcopy(model, memo)`, except that a graph module and its copy share the graph.

    Args:
        model: left unchanged.
        memo: replacements for objects by their id; copied objects are added.
    """
    if (known := memo.get(id(model))) is not None:
        return known  # type: ignore[no-any-return]
    kind: Any = type(model)
    is_graph = isinstance(model, fx.GraphModule)
    if not is_graph and not _is_copied_by_state(kind):
        return copy.deepcopy(model, memo)
    duplicate: nn.Module = object.__new__(kind) if is_graph else kind.__new__(kind)
    memo[id(model)] = duplicate
    if is_graph:
        memo[id(model.graph)] = model.graph
    if is_graph:
        duplicate.__dict__.update((name, _value(value, memo)) for name, value in vars(model).items())
    else:
        state = model.__getstate__()  # type: ignore[no-untyped-call]
        # The memo knows objects by their id: one that is freed would pass its id on to another.
        memo.setdefault(id(memo), []).append(state)
        duplicate.__setstate__(_value(state, memo))  # type: ignore[no-untyped-call]
    return duplicate


@functools.cache
def _is_copied_by_state(kind: type[nn.Module]) -> bool:
    """Return True if `copy.deepcopy` copies exactly the state of such a module, and nothing else."""
    usual = all(getattr(kind, way) is getattr(object, way) for way in ("__reduce_ex__", "__reduce__"))
    return usual and not any(hasattr(kind, way) for way in ("__deepcopy__", "__getnewargs__", "__getnewargs_ex__"))


def _value(value: Any, memo: dict[Any, Any]) -> Any:  # noqa: ANN401 -- any attribute of a module
    kind = type(value)
    if kind in IMMUTABLE_TYPES:
        return value
    if (known := memo.get(id(value))) is not None:
        return known
    if kind in CONTAINER_TYPES and not value:
        memo[id(value)] = kind()
    elif kind is dict and all(type(key) is str for key in value):
        memo[id(value)] = new = dict[str, Any]()
        new.update((key, _value(part, memo)) for key, part in value.items())
    elif isinstance(value, nn.Module):
        return copy_module(value, memo)
    elif kind is Tensor and _is_plain(value, memo):
        memo[id(value)] = new = value.clone()
        memo["torch"][_storage_key(value)] = new.untyped_storage()
    else:
        return copy.deepcopy(value, memo)
    return memo[id(value)]


def _is_plain(tensor: Tensor, memo: dict[Any, Any]) -> bool:
    """Return True if `clone` copies the tensor fully: it has its own storage and no special properties."""
    if tensor.layout is not torch.strided or tensor.device.type not in {"cpu", "cuda"} or tensor.requires_grad:
        return False
    owns_storage = tensor.untyped_storage().nbytes() == tensor.nbytes and tensor.is_contiguous()
    owns_storage = owns_storage and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg() or vars(tensor))
    return owns_storage and _storage_key(tensor) not in memo.setdefault("torch", {})


def _storage_key(tensor: Tensor) -> object:
    """Return the key by which `copy.deepcopy` identifies the storage of a tensor."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 -- as in `Tensor.__deepcopy__`
