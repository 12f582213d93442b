"""Where training runs: the device, and the `Accelerator` for it."""

import atexit
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from fxsurgery.errors import DeviceError

Device = str | torch.device | None

_SECONDS_TO_LET_GO = 0.5


def resolve(device: Device) -> torch.device:
    """The device of that name, checked to be there; `None` is the GPU where there is one.

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


def processes() -> int:
    """How many processes share the training: 1, unless launched by `accelerate launch` or `torchrun`."""
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def accelerated(
    device: Device | Accelerator, mixed_precision: str | None
) -> Iterator[tuple[Accelerator, torch.device]]:
    """An `Accelerator`, and the device that it trains on.

    In a single process it is ours alone: Accelerate keeps its choice of device and precision per process,
    which is put back afterwards, so that stages may differ and a user's own `Accelerator` stays whole.

    Raises:
        DeviceError: the device is not there or cannot do that precision, or gradients would accumulate.
    """
    if isinstance(device, Accelerator):
        if mixed_precision not in {None, device.mixed_precision}:
            raise DeviceError(f"the recipe asks for {mixed_precision}, the Accelerator has {device.mixed_precision}")
        if device.gradient_accumulation_steps != 1:
            raise DeviceError("gradient accumulation is not supported; use an Accelerator without it")
        yield device, device.device
        return
    with ExitStack() as stack:
        target = resolve(device)
        if processes() == 1:
            stack.enter_context(_own_accelerate_state())
        elif not torch.distributed.is_initialized():
            atexit.register(_leave_the_group)
        try:
            accelerator = Accelerator(cpu=target.type == "cpu", mixed_precision=mixed_precision, device_placement=False)
        except ValueError as error:
            raise DeviceError(f"cannot train on {target} with precision {mixed_precision}: {error}") from error
        yield accelerator, target if processes() == 1 else accelerator.device


def _leave_the_group() -> None:
    """End the process group that Accelerate started and leaves running.

    gloo's threads stay even so, and one that lets go of its last tensor needs the interpreter's lock for it: one
    that asks for the lock of an interpreter already on its way out aborts the process. So they get it here.
    """
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        time.sleep(_SECONDS_TO_LET_GO)


@contextmanager
def _own_accelerate_state() -> Iterator[None]:
    stores = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]  # noqa: SLF001
    saved = [dict(store) for store in stores]
    try:
        for store in stores:
            store.clear()
        yield
    finally:
        for store, before in zip(stores, saved, strict=True):
            store.clear()
            store.update(before)
