"""Snapshots of a running training, from which it is resumed bit for bit.

A snapshot is plain data: dicts, lists, tuples, strings, numbers, `None` and tensors on the CPU, so it can be written
and read as `fxsurgery.training.encoding` does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fxsurgery.errors import RunError, TrainingError, reason_of
from fxsurgery.training.encoding import decode, encode

FORMAT = 3


@runtime_checkable
class Checkpointer(Protocol):
    """Stores the snapshots of one training. In a distributed run every process has one and makes the same calls."""

    def last(self) -> Mapping[str, Any] | None:
        """Return the last snapshot; `None` if there is none."""

    def wants(self, step: int, steps: int) -> bool:
        """Return True if a snapshot should be taken now, after `step` of `steps` steps."""

    def keep(self, snapshot: Mapping[str, Any]) -> None:
        """Store a snapshot; nothing else refers to it."""


def plain(value: object, what: str) -> Any:  # noqa: ANN401
    """Return a copy of `value` as plain data; messages call it `what`.

    Raises:
        TrainingError: there is something else in it.
    """
    if value is None or type(value) in {bool, int, float, str}:
        return value
    if isinstance(value, np.float64 | np.int64 | np.bool_):
        return value.item()
    if isinstance(value, Tensor) and type(value) in {Tensor, nn.Parameter}:
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {plain(key, what): plain(part, f"{what}[{key!r}]") for key, part in value.items()}
    if isinstance(value, tuple | list):
        parts = [plain(part, f"{what}[{i}]") for i, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    raise TrainingError(
        f"no snapshot can be taken: {what} is a {type(value).__name__}. Only dicts, lists, tuples, strings, numbers, "
        "None and tensors can be read back safely; train without run directory, or keep it in one of these"
    )


def check_readable(snapshot: Mapping[str, Any]) -> None:
    """Write a snapshot and read it back, in memory.

    Raises:
        TrainingError: it does not come back.
    """
    try:
        decode(encode(snapshot), "it")
    except (RunError, ValueError) as error:
        raise TrainingError(
            f"no snapshot can be taken: what was written cannot be read back: {reason_of(error)}; train without run "
            "directory"
        ) from error


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Return every parameter and buffer by name, also those that are not in the state dict."""
    return {name: plain(tensor, name) for name, tensor in _named(model)}


def put_back(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Restore the values that `tensors_of` returned, in place.

    Raises:
        TrainingError: they are not of this model.
    """
    own = dict(_named(model))
    if {n: (t.shape, t.dtype) for n, t in own.items()} != {n: (t.shape, t.dtype) for n, t in tensors.items()}:
        wrong = sorted(own.keys() ^ tensors.keys()) or [
            n for n, t in own.items() if (t.shape, t.dtype) != (tensors[n].shape, tensors[n].dtype)
        ]
        raise TrainingError(
            f"the snapshot is of another model; they differ in: {', '.join(wrong[:3])}; delete it, or pass its model"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()


def check_same(snapshot: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Check that a snapshot is of this training.

    Raises:
        TrainingError: it is not; the message names the differences.
    """
    other = [name for name, value in wanted.items() if snapshot.get(name) != value]
    if other:
        told = ", ".join(f"{name} was {snapshot.get(name)!r}, is {wanted[name]!r}" for name in other)
        raise TrainingError(f"the snapshot is of another training: {told}; delete it, or train with its settings")


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Restore the state that an optimizer's `state_dict` returned, in its original number formats.

    Raises:
        TrainingError: it is of another optimizer.
    """
    with restoring("optimizer"):
        optimizer.load_state_dict(dict(state))
        saved = state["state"]
        for number, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            held = optimizer.state.get(parameter, {})
            for name, value in saved.get(number, {}).items():
                # `load_state_dict` gives states the dtype of their parameters.
                if isinstance(value, Tensor) and held[name].dtype != value.dtype:
                    held[name] = value.to(held[name].device, copy=True)


@contextmanager
def restoring(what: str) -> Iterator[None]:
    """Turn the errors of restoring a snapshot into a `TrainingError`.

    Raises:
        TrainingError: it is of another `what`.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
        raise TrainingError(
            f"the snapshot is of another {what}: {reason_of(error)}; delete it, and the stage begins anew"
        ) from error
