"""Modules on resized tensors: which modules can be resized, and their size attributes."""

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from fxsurgery.nn.elastic.switches import UnitMask
from fxsurgery.ops import registry
from fxsurgery.ops.module_sizes import Sizes
from fxsurgery.ops.operator import Kind

_WeightNorm = parametrizations._WeightNorm  # noqa: SLF001


def is_resizable(module: nn.Module) -> bool:
    """Return True if the tensors of a called module, if any, can be resized."""
    if is_computed(module):
        return is_weight_normed(module)
    is_bare = not (module._parameters or module._buffers or module._modules)  # noqa: SLF001
    return is_bare or _has_sized_tensors(module) or not list(module.state_dict())


def _has_sized_tensors(module: nn.Module) -> bool:
    """Return True if `refit` supports the tensors of a module."""
    operator = registry.of_module(module)
    known = operator is not None and (operator.weight is not None or operator.kind is Kind.RECURRENT)
    return known or isinstance(module, UnitMask)


def _is_mixing_layer(module: nn.Module) -> bool:
    operator = registry.of_module(module)
    return operator is not None and operator.is_mixing_layer


def is_parametrized(module: nn.Module) -> bool:
    """Return True if a tensor of `module` is computed from others by PyTorch's parametrizations."""
    return "parametrizations" in module._modules and parametrize.is_parametrized(module)  # noqa: SLF001 -- asked often


def is_computed(module: nn.Module) -> bool:
    """Return True if a tensor of `module` is computed from others, by a parametrization or by a hook before each call.

    A hook (`torch.nn.utils.spectral_norm`, `torch.nn.utils.prune`) sets it as a plain attribute, which PyTorch's layers
    do not have otherwise.
    """
    is_hooked = _has_sized_tensors(module) and any(isinstance(value, Tensor) for value in vars(module).values())
    return is_hooked or is_parametrized(module)


def is_weight_normed(module: nn.Module) -> bool:
    """Return True if only `weight` is parametrized, by weight norm over all dims but the first."""
    if not is_parametrized(module) or not _is_mixing_layer(module):
        return False
    found = getattr(module, "parametrizations")  # noqa: B009 -- not declared on nn.Module
    only = list(found) == ["weight"] and len(found["weight"]) == 1
    return only and isinstance(found["weight"][0], _WeightNorm) and found["weight"][0].dim == 0


def scale_name(module: nn.Module) -> str:
    """Return the tensor that scales the outputs of a module: an output whose row is 0 equals its bias."""
    return "parametrizations.weight.original0" if is_weight_normed(module) else "weight"


def refit(module: nn.Module, tensors: Mapping[str, Tensor], sizes: Sizes | None = None) -> nn.Module:
    """Return a copy of `module` on `tensors` (by their names in it), with matching size attributes.

    Args:
        module: a module that `is_resizable`; it is not changed.
        tensors: the resized parameters and buffers; the others are shared.
        sizes: new sizes that do not follow from a tensor.
    """
    if is_weight_normed(module):
        return _refit_weight_normed(module, tensors, sizes)
    new = type(module).__new__(type(module))
    vars(new).update(vars(module))
    new._parameters, new._buffers = dict(module._parameters), dict(module._buffers)  # noqa: SLF001
    for name, tensor in tensors.items():
        _put(new, name, tensor)
    vars(new).update(_attributes(new, sizes or Sizes()))
    if isinstance(new, nn.RNNBase):
        new._flat_weights = [getattr(new, name) for name in new._flat_weights_names]  # noqa: SLF001
    return new


def _put(module: nn.Module, name: str, tensor: Tensor) -> None:
    if (old := module._parameters.get(name)) is not None:  # noqa: SLF001
        shared = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, old.requires_grad)
        module._parameters[name] = shared  # noqa: SLF001
    else:
        module._buffers[name] = tensor  # noqa: SLF001


def _refit_weight_normed(module: nn.Module, tensors: Mapping[str, Tensor], sizes: Sizes | None) -> nn.Module:
    """Scale the magnitude g with the norm of a shortened row, so that the remaining entries of w are unchanged.

    w = g v / |v|, so w' = g' v' / |v'| with g' = g |v'| / |v| over the surviving rows.
    """
    magnitude_name, direction_name = "parametrizations.weight.original0", "parametrizations.weight.original1"
    new = copy.deepcopy(module, {id(t): t for t in (*module.parameters(), *module.buffers())})
    for name, tensor in tensors.items():
        owner, _, leaf = name.rpartition(".")
        _put(new.get_submodule(owner), leaf, tensor)
    if direction_name in tensors:
        with torch.no_grad():
            old, short = _row_norms(module.get_parameter(direction_name)), _row_norms(tensors[direction_name])
            magnitude = new.get_parameter(magnitude_name)
            kept = old if sizes is None or sizes.rows is None else old[sizes.rows]
            scaled = magnitude * (short / kept).reshape(magnitude.shape)
        owner, _, leaf = magnitude_name.rpartition(".")
        _put(new.get_submodule(owner), leaf, scaled)
    for name, value in _attributes(new, sizes or Sizes()).items():
        setattr(new, name, value)
    return new


def _row_norms(weight: Tensor) -> Tensor:
    norms: Tensor = weight.detach().flatten(1).norm(dim=1)
    return norms


def size_attributes(module: nn.Module) -> dict[str, object]:
    """Return the attributes of `module` that hold its sizes, by name; none if it cannot be resized."""
    if is_parametrized(module) or not _has_sized_tensors(module):
        return {}
    return dict(_attributes(module, Sizes()))


def _attributes(module: nn.Module, sizes: Sizes) -> Mapping[str, object]:
    """Return the size attributes of a module that match its current tensors."""
    operator = registry.of_module(module)
    return {} if operator is None or operator.size_attributes is None else operator.size_attributes(module, sizes)
