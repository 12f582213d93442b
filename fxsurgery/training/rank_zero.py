"""Work of only the first process of a distributed run, such as files and measurements, shared with the others."""

from collections.abc import Callable
from typing import TypeVar

from accelerate.utils import broadcast_object_list

from fxsurgery.errors import DeviceError, SurgeryError, TrainingError
from fxsurgery.option_types import checked
from fxsurgery.training.device import Device, join, processes, resolve

T = TypeVar("T")


@checked(TrainingError, device=DeviceError)
def from_rank_zero(make: Callable[[], T], device: Device = None) -> T:
    """Return in every process what `make` returns in the first one; a `SurgeryError` is raised in all of them.

    Every process must come here alike. What is made is sent as Python objects, within the run's own processes.
    """
    if processes() == 1:
        return make()
    state = join(resolve(device))
    told: list[tuple[T | None, SurgeryError | None]] = [(None, None)]
    if state.is_main_process:
        try:
            told = [(make(), None)]
        except SurgeryError as failed:
            told = [(None, failed)]
    broadcast_object_list(told, from_process=0)
    [(value, error)] = told
    if error is not None:
        raise error
    return value  # type: ignore[return-value]
