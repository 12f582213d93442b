"""What a caller may have set around a call of this package, and the state that must be the same after it."""

import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack


class Doubling(TorchFunctionMode):
    """A function mode that changes results."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 2 if getattr(func, "__name__", "") in {"linear", "conv2d", "relu"} else out


class Counting(TorchDispatchMode):
    """A dispatch mode that sees every operation."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def default_device(name: str) -> Iterator[None]:
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextmanager
def no_gradients() -> Iterator[None]:
    before = torch.is_grad_enabled()
    torch.set_grad_enabled(False)
    try:
        yield
    finally:
        torch.set_grad_enabled(before)


@contextmanager
def several() -> Iterator[None]:
    with (
        torch.inference_mode(),
        torch.device("meta"),
        torch.autocast("cpu", dtype=torch.float16),
        torch.autocast("cpu", enabled=False),
        torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False),
        Counting(),
        Doubling(),
        default_dtype(),
    ):
        yield


SURROUNDINGS: Mapping[str, Callable[[], AbstractContextManager[Any]]] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "gradients turned off": no_gradients,
    "default dtype": default_dtype,
    "default device": lambda: default_device("meta"),
    "default device of this machine": lambda: default_device("cpu"),
    "device block": lambda: torch.device("meta"),
    "deterministic algorithms": deterministic,
    "function mode": Doubling,
    "dispatch mode": Counting,
    "anomaly mode": torch.autograd.detect_anomaly,
    "warnings are errors": errors,
    "numpy errors": lambda: np.errstate(all="raise"),
    "matmul precision": precision,
    "several at once": several,
}


def state() -> dict[str, Any]:
    """Everything of this thread and process that a call must leave as it was."""
    calls = {k: v for k, v in vars(torch.nn.Module).items() if k in {"__call__", "__getattr__", "forward"}}
    return {
        "python": random.getstate(),
        "numpy": repr(np.random.get_state()),  # noqa: NPY002 -- compared, not drawn from
        "torch": torch.get_rng_state().tolist(),
        "autocast": [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in ("cpu", "cuda")],
        "autocast cache": torch.is_autocast_cache_enabled(),
        "autocast nesting": (torch.autocast_increment_nesting(), torch.autocast_decrement_nesting()),
        "gradients": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device().type,
        "modes": [*map(id, _get_current_function_mode_stack()), *map(id, _get_current_dispatch_mode_stack())],
        "anomaly": (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "precision": torch.get_float32_matmul_precision(),
        "threads": torch.get_num_threads(),
        "denormals": float(torch.full((1,), 1e-310, dtype=torch.float64, device="cpu") * 1.0) if _is_plain() else None,
        "warnings": list(warnings.filters),
        "numpy errors": np.geterr(),
        "streams": (sys.stdout, sys.stderr),
        "limit": sys.getrecursionlimit(),
        "module": calls,
        "compiling": (torch.compiler.is_compiling(), torch.compiler.is_exporting()),
        "constructors": (torch.arange, torch.zeros, torch.full),
    }


def _is_plain() -> bool:
    return not (_get_current_function_mode_stack() or _get_current_dispatch_mode_stack())
