"""Snapshots of a training under way, from which it goes on bit for bit.

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
    """Keeps the snapshots of one training. In a distributed run every process has one and asks it alike."""

    def last(self) -> Mapping[str, Any] | None:
        """The last snapshot kept, to go on from; `None`: begin."""

    def wants(self, step: int, steps: int) -> bool:
        """Whether to take one now, after so many steps of `steps`."""

    def keep(self, snapshot: Mapping[str, Any]) -> None:
        """Keep a snapshot, which is nobody else's."""


def plain(value: object, what: str) -> Any:  # noqa: ANN401
    """A copy of `value` as plain data; `what` is what messages call it.

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
    """Every parameter and every buffer by name, those too that its state dict leaves out."""
    return {name: plain(tensor, name) for name, tensor in _named(model)}


def put_back(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give `model` the values that `tensors_of` took, in place.

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
    """Make sure that a snapshot is of this training.

    Raises:
        TrainingError: it is not; the message says in what it differs.
    """
    other = [name for name, value in wanted.items() if snapshot.get(name) != value]
    if other:
        told = ", ".join(f"{name} was {snapshot.get(name)!r}, is {wanted[name]!r}" for name in other)
        raise TrainingError(f"the snapshot is of another training: {told}; delete it, or train with its settings")


def restore_optimizer(optimizer: Optimizer, state: Mapping[str, Any]) -> None:
    """Give an optimizer the state that its `state_dict` gave, in the number formats of then.

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
    """Turn what goes wrong where a snapshot is put back into an error of ours.

    Raises:
        TrainingError: it is of another `what`.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError) as error:
        raise TrainingError(
            f"the snapshot is of another {what}: {reason_of(error)}; delete it, and the stage begins anew"
        ) from error
