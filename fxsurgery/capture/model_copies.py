"""Copies of a private model for single runs, which share the memory of its parameters.

A copy has its own modules, buffers and attributes, and its own `nn.Parameter`s on the memory of the private model's
parameters. A run may write to that memory in any way, through `.data` or NumPy too. Therefore the memory is compared
bit by bit with the user's model, and restored if it differs, before each copy is handed out.
"""

import enum
import functools
import types
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fxsurgery.capture.module_copy import CONTAINER_TYPES, IMMUTABLE_TYPES, copy_module

SEED = 20_011
NEAR_ZERO = 1e-3
"""A parameter whose entries are all below this hides what it multiplies, so checks replace its values."""

MAX_DEPTH, MAX_PARTS = 4, 1000
"""Limits for comparing the attributes of a module before and after a run: nesting, and entries per container."""

IDENTITY_TYPES = (
    type, enum.Enum, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MethodType,
    functools.partial, weakref.ref, nn.Module,
)  # fmt: skip
"""Types that are compared by identity; submodules of the model are compared separately."""


class ModelCopies:
    """Hands out copies of a private model, or of a graph module built from it, in the state of the user's model.

    Use one copy at a time: what a run writes to the shared parameters stays until the next copy is taken.
    """

    def __init__(self, private: nn.Module, users: nn.Module) -> None:
        theirs = dict(users.named_parameters())
        pairs = [(own, theirs.get(name)) for name, own in private.named_parameters()]
        self._pairs = [(own, other) for own, other in pairs if other is not None and _is_shareable(own, other)]
        self._shared = {own.untyped_storage().data_ptr() for own, _ in self._pairs}
        self.nonzero_values = _nonzero_values(private)
        """Random values for the parameters that are zero or nearly zero, by every name."""

    @property
    def is_intact(self) -> bool:
        """Return True if the shared parameters have the values of the user's model."""
        return all(same_bits(own, users) for own, users in self._pairs)

    def restore(self) -> None:
        """Restore the shared parameters to the values of the user's model where they differ."""
        for own, users in self._pairs:
            if not same_bits(own, users):
                own.detach().copy_(users.detach())

    def take(self, model: nn.Module, *, nonzero: bool = False) -> nn.Module:
        """Return a copy of `model`, the private model or a graph module built from a copy of it.

        Args:
            model: left unchanged.
            nonzero: whether to replace parameters that are all zero by random values: a zero head hides any difference
                before it.
        """
        self.restore()
        values = self.nonzero_values if nonzero else {}
        memo: dict[int, Any] = {}
        for name, parameter in model.named_parameters():
            if name not in values and self._is_shared(parameter):
                memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
        duplicate = copy_module(model, memo)
        for name, parameter in duplicate.named_parameters():
            if name in values:
                parameter.data.copy_(values[name])
        return duplicate

    def _is_shared(self, parameter: Tensor) -> bool:
        return type(parameter) is nn.Parameter and parameter.untyped_storage().data_ptr() in self._shared


class _Identity:
    """Equal only for the same object, which it keeps alive: the id of one that is freed is given to another."""

    def __init__(self, value: object) -> None:
        self.value = value

    @override
    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    @override
    def __hash__(self) -> int:
        return id(self.value)


class ScratchCopy:
    """A reusable copy of a model in eval mode with nonzero parameters; replaced if a run changed it."""

    def __init__(self, copies: ModelCopies, model: nn.Module) -> None:
        self._copies, self._model = copies, model
        self._copy: nn.Module | None = None
        self._state = list[object]()
        self._was_changed = False

    def copy(self) -> nn.Module:
        """Return the copy in its initial state."""
        if self._copy is not None and self._is_unchanged(self._copy):
            self._copies.restore()
            return self._copy
        self._was_changed = self._copy is not None
        self._copy = self._copies.take(self._model, nonzero=True)
        self._state = _state_of(self._copy)
        return self._copy

    @property
    def keeps_state(self) -> bool:
        """Return True if a run changed anything that a later one could see, or if nothing has run yet."""
        return self._was_changed or self._copy is None or not self._is_unchanged(self._copy, shared=True)

    def _is_unchanged(self, duplicate: nn.Module, *, shared: bool = False) -> bool:
        """Return True if a copy is in its initial state, with or without the parameters that it shares.

        Values are compared with those of the model: batch norm, `.data` and NumPy do not increase the version counter.
        """
        if self._state != _state_of(duplicate) or (shared and not self._copies.is_intact):
            return False
        nonzero = self._copies.nonzero_values
        parameters = [(own, nonzero[name]) for name, own in duplicate.named_parameters() if name in nonzero]
        buffers = zip(duplicate.buffers(), self._model.buffers(), strict=False)
        return all(same_bits(*pair) for pair in (*buffers, *parameters))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return True if two tensors have the same bits; NaN equals itself, and 0 differs from -0."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    flat = [x.detach().resolve_conj().resolve_neg().contiguous().view(-1) for x in (one, other)]
    is_wide = all(x.nbytes % 8 == 0 and not x.storage_offset() for x in flat)
    # Comparing eight bytes at a time runs at memory bandwidth, single bytes far slower.
    return torch.equal(*(x.view(torch.int64 if is_wide else torch.uint8) for x in flat))


def _is_shareable(own: Tensor, users: Tensor) -> bool:
    is_plain = type(own) is nn.Parameter and type(users) is nn.Parameter and own.layout is torch.strided
    return is_plain and bool(own.numel()) and not own.is_quantized and same_bits(own, users)


def _nonzero_values(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    found = dict[int, Tensor]()
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() and _largest(parameter) < NEAR_ZERO:
            found[id(parameter)] = (torch.randn(parameter.shape, generator=generator) * 0.02).to(parameter.detach())
    names = model.named_parameters(remove_duplicate=False)
    return {name: found[id(parameter)] for name, parameter in names if id(parameter) in found}


def _largest(tensor: Tensor) -> float:
    low, high = torch.aminmax(tensor.detach())
    return max(-float(low), float(high))


def _state_of(model: nn.Module) -> list[object]:
    """Return the state that a run can change, apart from the values of shared parameters and buffers."""
    found = list[object]()
    for module in model.modules():
        for name, value in vars(module).items():
            if name == "_buffers":
                found += (name, *((path, _Identity(buffer)) for path, buffer in value.items()))
            elif name not in {"training", "_graph"}:
                found += (name, _fingerprint(value, MAX_DEPTH))
    return found


def _fingerprint(value: Any, depth: int) -> object:  # noqa: ANN401 -- any attribute of the user's
    """Return a fingerprint that differs once a run changed the value; a unique object if changes are undetectable.

    The latter holds for tensors other than parameters and buffers: not every write increases their version counter.
    """
    kind = type(value)
    if kind in IMMUTABLE_TYPES:
        return value
    if kind in CONTAINER_TYPES and not value:
        return (_Identity(value),)
    if isinstance(value, nn.Parameter):
        return _Identity(value), value.requires_grad, value._version  # noqa: SLF001 -- the version counter
    if isinstance(value, IDENTITY_TYPES):
        return _Identity(value)
    parts = None if isinstance(value, Tensor) else _parts(value)
    if parts is None or depth == 0 or len(parts) > MAX_PARTS:
        return object()
    return (_Identity(value), *(_fingerprint(part, depth - 1) for part in parts))


def _parts(value: Any) -> list[Any] | None:  # noqa: ANN401 -- as above
    """Return the keys, entries and attributes of a value; None if it may have others."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return list(vars(value).values()) if hasattr(value, "__dict__") else None
