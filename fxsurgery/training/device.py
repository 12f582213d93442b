"""Where training runs: the device, and the `Accelerator` for it."""

import atexit
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from torch import Tensor

from fxsurgery.argument_names import assigned, keyword
from fxsurgery.errors import DeviceError, reason_of
from fxsurgery.option_types import checked
from fxsurgery.turns import TURNS

Device = str | torch.device | None

SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_SECONDS_TO_LET_GO = 0.5


@checked(DeviceError)
def resolve(device: Device) -> torch.device:
    """Return the device of that name, checked to be available; `None` is the GPU if there is one.

    Raises:
        DeviceError: there is no such device on this machine.
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError, ImportError) as error:
        there = ", ".join(["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise DeviceError(f"device {str(device)!r} is not there; this machine has: {there}") from error
    return wanted


def require_real(device: torch.device) -> None:
    """Refuse the device of tensors without numbers.

    Raises:
        DeviceError: it is `meta`.
    """
    if device.type == "meta":
        raise DeviceError("device 'meta' holds no numbers and cannot train: use 'cpu' or 'cuda'")


def on_device(batch: Any, device: torch.device) -> Any:  # noqa: ANN401
    """Return a batch of any structure with all that can be moved, tensors above all, on `device`."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device)
    if hasattr(batch, "to"):
        return batch.to(device)
    if isinstance(batch, tuple | list):
        parts = [on_device(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(batch, Mapping):
        return type(batch)({key: on_device(part, device) for key, part in batch.items()})  # type: ignore[call-arg]
    return batch


def processes() -> int:
    """Return the number of processes that share the training: 1 without `accelerate launch` or `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def leads() -> bool:
    """Return True in the first process of a distributed run, or the only one: it alone writes and shows."""
    return os.environ.get("RANK", "0") == "0"


def join(device: torch.device) -> PartialState:
    """Join the processes of a distributed run, and leave them when the interpreter ends."""
    if processes() > 1 and not torch.distributed.is_initialized():
        atexit.register(_leave_the_group)
    return PartialState(cpu=device.type == "cpu")


@contextmanager
def accelerated(
    device: Device | Accelerator, mixed_precision: str | None, accumulate: int = 1
) -> Iterator[tuple[Accelerator, torch.device]]:
    """Yield an `Accelerator` that accumulates over `accumulate` batches, and the device that it trains on.

    It is ours alone: Accelerate keeps its choice of device and precision per process, which is put back
    afterwards, so that stages may differ and a user's own `Accelerator` stays whole. A user's may accumulate where
    `accumulate` is 1.

    Raises:
        DeviceError: the device is not there or cannot do that precision, or an `Accelerator` is set up otherwise.
    """
    if isinstance(device, Accelerator):
        if mixed_precision not in {None, device.mixed_precision}:
            raise DeviceError(
                f"the recipe asks for {mixed_precision}, the Accelerator has {device.mixed_precision}; give both the "
                f"same {keyword('mixed_precision')}"
            )
        _require_supported(device, device.device, accumulate)
        yield device, device.device
        return
    target = resolve(device)
    require_real(target)
    with own_accelerate_state(target):
        try:
            accelerator = Accelerator(
                cpu=target.type == "cpu",
                mixed_precision=mixed_precision,
                device_placement=False,
                gradient_accumulation_steps=accumulate,
            )
        except ValueError as error:
            raise DeviceError(
                f"cannot train on {target} with precision {mixed_precision}: {reason_of(error)}; choose another "
                f"{keyword('device')} or {keyword('mixed_precision')}"
            ) from error
        there = target if processes() == 1 else accelerator.device
        _require_supported(accelerator, there, accumulate)
        yield accelerator, there


def _require_supported(accelerator: Accelerator, device: torch.device, accumulate: int) -> None:
    precision, kind = accelerator.mixed_precision, accelerator.distributed_type
    if precision == "fp16" and accelerator.scaler is None:
        raise DeviceError(
            f"fp16 needs its losses scaled, which {device} does not do; use {assigned('mixed_precision', 'bf16')}"
        )
    if precision not in {"no", "bf16", "fp16"}:
        raise DeviceError(f"cannot train with precision {precision!r}; use 'no', 'bf16' or 'fp16'")
    if kind not in SUPPORTED:
        raise DeviceError(f"cannot train with Accelerate's {kind}: each process must hold the whole model")
    theirs = accelerator.gradient_accumulation_steps
    if accumulate not in {1, theirs}:
        raise DeviceError(
            f"the recipe accumulates {accumulate} batches a step, the Accelerator {theirs}; give both the same number"
        )


def _leave_the_group() -> None:
    """End the process group that Accelerate started and leaves running.

    gloo's threads stay even so, and one that lets go of its last tensor needs the interpreter's lock for it: one
    that asks for the lock of an interpreter already on its way out aborts the process. So they get it here.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(_SECONDS_TO_LET_GO)


@contextmanager
def own_accelerate_state(device: torch.device) -> Iterator[None]:
    """Forget what Accelerate has set up; of a distributed run, all but the processes that belong to it."""
    kinds: list[Any] = [AcceleratorState, GradientState]
    if processes() == 1:
        kinds.append(PartialState)
    else:
        join(device)
    with TURNS.turn(), TURNS.borrowed(_AccelerateState(kinds)):
        yield


class _AccelerateState:
    """Take the state that these classes of Accelerate share; they share nothing afterwards.

    Objects of before keep what they had, in whatever thread they are used.
    """

    def __init__(self, kinds: Sequence[Any]) -> None:
        self._kinds = kinds
        self._kept = [type(kind._shared_state)() for kind in kinds]  # noqa: SLF001
        self.swap()

    def swap(self) -> None:
        """Exchange what the classes share and what is kept."""
        for number, kind in enumerate(self._kinds):
            kind._shared_state, self._kept[number] = self._kept[number], kind._shared_state  # noqa: SLF001
