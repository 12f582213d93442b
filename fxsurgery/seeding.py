"""Randomness and float modes that hold inside a block and leave the process as it was."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch (CPU and `device`), numpy and `random`; afterwards their states are as they were before."""
    python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002 -- saved and restored
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            reseed(seed, device)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002 -- saved and restored


def reseed(seed: int, device: torch.device) -> None:
    """Set every global random state that data sets and layers draw from. Call it inside `seeded` alone."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- as above
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def mix(seed: int, epoch: int) -> int:
    """One seed out of two numbers; a different epoch gives an unrelated stream."""
    return int(np.random.SeedSequence((seed % 2**64, epoch)).generate_state(1)[0])


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take denormal numbers as zero: a vanishing gate would otherwise slow a CPU down tenfold."""
    before = bool((torch.full((1,), 1e-310, dtype=torch.float64) * 1.0 == 0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
