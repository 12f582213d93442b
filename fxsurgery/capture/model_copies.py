"""Copies of a private model to run, which share its parameters.

A copy has modules, buffers and attributes of its own, and `nn.Parameter`s of its own on the memory of the private
model's. A run may write to that memory in any way, through `.data` or NumPy too, so before each copy is handed out
it is compared with the user's model bit for bit, and put back where it differs.
"""

import enum
import functools
import types
import weakref
from typing import Any

import torch
from torch import Tensor, nn

from fxsurgery.capture.module_copy import EMPTIED, FIXED, copied

SEED = 20_011
QUIET = 1e-3
"""A parameter that nowhere exceeds this hides what it multiplies, so a check runs without it."""

DEEPEST, LONGEST = 4, 1000
"""How deep, and how far, the attributes of a module are gone through to tell whether a run changed them."""

HELD = (
    type, enum.Enum, types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.MethodType,
    functools.partial, weakref.ref, nn.Module,
)  # fmt: skip
"""Types of values that are compared by which they are; modules of the model are gone through by themselves."""


class ModelCopies:
    """Hands out copies of a private model, or of a graph module made of it, that begin as the user's model is.

    One copy runs at a time: what a run writes to the shared parameters stays until the next copy is taken.
    """

    def __init__(self, private: nn.Module, users: nn.Module) -> None:
        theirs = dict(users.named_parameters())
        pairs = [(own, theirs.get(name)) for name, own in private.named_parameters()]
        self._pairs = [(own, other) for own, other in pairs if other is not None and _is_shareable(own, other)]
        self._shared = {own.untyped_storage().data_ptr() for own, _ in self._pairs}
        self.lively_values = _lively_values(private)
        """Random values for the parameters that are all zero or nearly so, by every name."""

    @property
    def is_intact(self) -> bool:
        """Whether the shared parameters have the values of the user's model."""
        return all(same_bits(own, users) for own, users in self._pairs)

    def restore(self) -> None:
        """Give the shared parameters the values of the user's model again, where they differ."""
        for own, users in self._pairs:
            if not same_bits(own, users):
                own.detach().copy_(users.detach())

    def take(self, model: nn.Module, *, lively: bool = False) -> nn.Module:
        """Return a copy of `model`, the private one or a graph module made of a copy of it.

        Args:
            model: stays as it is.
            lively: whether parameters that are all zero have random values: a zero head equals any other.
        """
        self.restore()
        values = self.lively_values if lively else {}
        memo: dict[int, Any] = {}
        for name, parameter in model.named_parameters():
            if name not in values and self._is_shared(parameter):
                memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
        twin = copied(model, memo)
        for name, parameter in twin.named_parameters():
            if name in values:
                parameter.data.copy_(values[name])
        return twin

    def _is_shared(self, parameter: Tensor) -> bool:
        return type(parameter) is nn.Parameter and parameter.untyped_storage().data_ptr() in self._shared


class Scratch:
    """A lively copy of a model for eval mode, to run again and again; a new one where a run changed it."""

    def __init__(self, copies: ModelCopies, model: nn.Module) -> None:
        self._copies, self._model = copies, model
        self._copy: nn.Module | None = None
        self._state = list[object]()
        self._was_changed = False

    def copy(self) -> nn.Module:
        """Return the copy, as it was at first."""
        if self._copy is not None and self._is_unchanged(self._copy):
            self._copies.restore()
            return self._copy
        self._was_changed = self._copy is not None
        self._copy = self._copies.take(self._model, lively=True)
        self._state = _state_of(self._copy)
        return self._copy

    @property
    def keeps_state(self) -> bool:
        """Whether a run changed anything that a later one could see; true where nothing ran."""
        return self._was_changed or self._copy is None or not self._is_unchanged(self._copy, shared=True)

    def _is_unchanged(self, twin: nn.Module, *, shared: bool = False) -> bool:
        """Whether a copy is as it was at first, with or without the parameters that it shares.

        Numbers are compared with those of the model: batch norm, `.data` and NumPy write without being counted.
        """
        if self._state != _state_of(twin) or (shared and not self._copies.is_intact):
            return False
        lively = self._copies.lively_values
        parameters = [(own, lively[name]) for name, own in twin.named_parameters() if name in lively]
        buffers = zip(twin.buffers(), self._model.buffers(), strict=False)
        return all(same_bits(*pair) for pair in (*buffers, *parameters))


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bits; NaN equals itself, and 0 differs from -0."""
    if (one.shape, one.dtype, one.device) != (other.shape, other.dtype, other.device):
        return False
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    flat = [x.detach().resolve_conj().resolve_neg().contiguous().view(-1) for x in (one, other)]
    is_wide = all(x.nbytes % 8 == 0 and not x.storage_offset() for x in flat)
    # Eight bytes at a time are compared as fast as memory is read, single ones far slower.
    return torch.equal(*(x.view(torch.int64 if is_wide else torch.uint8) for x in flat))


def _is_shareable(own: Tensor, users: Tensor) -> bool:
    is_plain = type(own) is nn.Parameter and type(users) is nn.Parameter and own.layout is torch.strided
    return is_plain and bool(own.numel()) and not own.is_quantized and same_bits(own, users)


def _lively_values(model: nn.Module) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    found = dict[int, Tensor]()
    for parameter in model.parameters():
        if parameter.is_floating_point() and parameter.numel() and _largest(parameter) < QUIET:
            found[id(parameter)] = (torch.randn(parameter.shape, generator=generator) * 0.02).to(parameter.detach())
    names = model.named_parameters(remove_duplicate=False)
    return {name: found[id(parameter)] for name, parameter in names if id(parameter) in found}


def _largest(tensor: Tensor) -> float:
    low, high = torch.aminmax(tensor.detach())
    return max(-float(low), float(high))


def _state_of(model: nn.Module) -> list[object]:
    """What a run can change, apart from the numbers in shared parameters and buffers."""
    found = list[object]()
    for module in model.modules():
        for name, value in vars(module).items():
            if name == "_buffers":
                found += (name, *((path, id(buffer)) for path, buffer in value.items()))
            elif name not in {"training", "_graph"}:
                found += (name, _shown(value, DEEPEST))
    return found


def _shown(value: Any, depth: int) -> object:  # noqa: ANN401 -- any attribute of the user's
    """What tells a value from what a run made of it; of what cannot be told, an object that equals nothing.

    That is so of tensors that are no parameters or buffers: not every write to them is counted.
    """
    kind = type(value)
    if kind in FIXED:
        return value
    if kind in EMPTIED and not value:
        return id(value)
    if isinstance(value, nn.Parameter):
        return id(value), value.requires_grad, value._version  # noqa: SLF001 -- counts writes
    if isinstance(value, HELD):
        return id(value)
    parts = None if isinstance(value, Tensor) else _parts(value)
    if parts is None or depth == 0 or len(parts) > LONGEST:
        return object()
    return (id(value), *(_shown(part, depth - 1) for part in parts))


def _parts(value: Any) -> list[Any] | None:  # noqa: ANN401 -- as above
    """The keys, entries and attributes of a value; `None` where it may have others."""
    if isinstance(value, dict):
        return [*value.keys(), *value.values()]
    if isinstance(value, list | tuple | set | frozenset):
        return list(value)
    return list(vars(value).values()) if hasattr(value, "__dict__") else None
