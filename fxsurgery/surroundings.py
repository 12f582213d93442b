"""Default PyTorch settings for the code of this package, whatever the caller has set.

Autocast, gradient modes, function and dispatch modes, the default device and dtype change what operations compute, and
so would change captures, proofs and training. Every public function that runs a model does so inside
`plain_surroundings`, which restores the caller's settings, also after an error.

Most of these settings are local to a thread. The default dtype and anomaly mode are global to the process: if the
caller has changed them, other threads see the defaults while the block runs. Settings that affect speed but not
results, or that the caller requires of the machine, stay in effect: numbers of threads, deterministic algorithms, the
precision of float32 matrix products, warning filters.
"""

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch._C import (
    _get_function_stack_at,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
    _pop_torch_function_stack,
    _push_on_torch_function_stack,
)
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _disable_current_modes

from fxsurgery.turns import TURNS

V = TypeVar("V")

AUTOCAST_DTYPES = {"cpu": torch.bfloat16, "cuda": torch.float16, "mps": torch.float16, "xpu": torch.float16}
"""Default dtype of `torch.autocast` by device type."""


_LEFT: ContextVar[tuple[str, ...]] = ContextVar("_LEFT", default=())


def left_outside() -> str:
    """Return the caller's settings that are not in effect here, for an error message; empty if there are none."""
    left = ", ".join(_LEFT.get())
    return f" (the caller's {left} does not hold inside fxsurgery: give dtype= and device= in forward)" if left else ""


@contextmanager
def plain_surroundings() -> Iterator[None]:
    """Run the block with the settings of a new process; the caller's settings are restored afterwards."""
    with ExitStack() as stack:
        if left := tuple(_changed()):
            stack.callback(_LEFT.reset, _LEFT.set(left))
        # Leaving inference mode turns gradients on as well, under a caller's no_grad too.
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(_without_function_modes())
        if _len_torch_dispatch_stack():
            stack.enter_context(_disable_current_modes())
        stack.enter_context(_without_autocast())
        stack.enter_context(_DTYPE.plain())
        stack.enter_context(_ANOMALY.plain())
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        yield


@contextmanager
def without_warnings(kind: type[Warning] = Warning) -> Iterator[None]:
    """Ignore warnings in the block. All threads share one list of filters, so others of this package wait."""
    with TURNS.turn(), warnings.catch_warnings():
        warnings.simplefilter("ignore", kind)
        yield


def _changed() -> Iterator[str]:
    """Yield the caller's settings that a model may need to run."""
    if (dtype := torch.get_default_dtype()) is not torch.float32:
        yield f"default dtype {dtype}"
    for mode in map(_get_function_stack_at, range(_len_torch_function_stack())):
        yield f"default device {mode.device}" if isinstance(mode, DeviceContext) else type(mode).__name__
    if any(torch.is_autocast_enabled(device) for device in AUTOCAST_DTYPES):
        yield "torch.autocast"


@contextmanager
def _without_function_modes() -> Iterator[None]:
    """Disable every `TorchFunctionMode` and the default device, which is one."""
    default = torch._GLOBAL_DEVICE_CONTEXT  # noqa: SLF001 -- setting it in public moves it on the stack of modes
    device = getattr(default, "device_context", None)
    modes = [_pop_torch_function_stack() for _ in range(_len_torch_function_stack())]
    default.device_context = None
    try:
        yield
    finally:
        default.device_context = device
        for mode in reversed(modes):
            _push_on_torch_function_stack(mode)


@contextmanager
def _without_autocast() -> Iterator[None]:
    """Leave all autocast regions: one that is entered inside is an outermost one, with its own cache."""
    nesting = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    cached = torch.is_autocast_cache_enabled()
    before = {d: (torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in AUTOCAST_DTYPES}
    plain = {d: (False, dtype) for d, dtype in AUTOCAST_DTYPES.items()}
    if not nesting and cached and before == plain:
        yield
        return
    _set_autocast(plain, cached=True)
    for _ in range(nesting):
        torch.autocast_decrement_nesting()
    try:
        yield
    finally:
        for _ in range(nesting):
            torch.autocast_increment_nesting()
        _set_autocast(before, cached=cached)


def _set_autocast(states: dict[str, tuple[bool, torch.dtype]], *, cached: bool) -> None:
    for device, (enabled, dtype) in states.items():
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)
    torch.set_autocast_cache_enabled(cached)
    # Weights that were cast before may have changed when the region is entered again.
    torch.clear_autocast_cache()


@dataclass
class _OnceForTheProcess(Generic[V]):
    """A setting shared by all threads: the first that needs the default sets it, the last restores it."""

    value: V
    get: Callable[[], V]
    put: Callable[[V], Any]
    users: int = 0
    before: list[V] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def plain(self) -> Iterator[None]:
        """Give the setting its default value in the block."""
        with self.lock:
            is_changed = bool(self.users) or self.get() != self.value
            if is_changed and not self.users:
                self.before.append(self.get())
                self.put(self.value)
            self.users += is_changed
        try:
            yield
        finally:
            with self.lock:
                self.users -= is_changed
                if is_changed and not self.users:
                    self.put(self.before.pop())


_DTYPE = _OnceForTheProcess(torch.float32, torch.get_default_dtype, torch.set_default_dtype)
_ANOMALY = _OnceForTheProcess(
    (False, True),
    lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
    lambda value: torch.set_anomaly_enabled(*value),
)
