"""Context managers for random seeds and float modes, which restore the state of the process."""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fxsurgery.turns import TURNS


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch (CPU and `device`), NumPy and `random` in the block; their states are restored afterwards.

    Other threads of this package that seed wait meanwhile. A user's thread that draws from these generators is not
    stopped, and gets numbers of this seed.
    """
    with random_states_kept([device] if device.type == "cuda" else []):
        reseed(seed, device)
        yield


@contextmanager
def random_states_kept(devices: Sequence[int | torch.device]) -> Iterator[None]:
    """Restore the states of the generators of torch (CPU and the GPUs `devices`), NumPy and Python after the block."""
    with TURNS.turn(), TURNS.borrowed(_RandomStates(devices)):
        yield


class _RandomStates:
    """Saved states of all global random generators of the process."""

    def __init__(self, devices: Sequence[int | torch.device]) -> None:
        self._devices = list(devices)
        self._kept = self._now()

    def swap(self) -> None:
        """Exchange the current states with the saved ones."""
        python, numpy, cpu, gpus = self._kept
        self._kept = self._now()
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002 -- saved and restored
        torch.set_rng_state(cpu)
        for device, state in zip(self._devices, gpus, strict=True):
            torch.cuda.set_rng_state(state, device)

    def _now(self) -> tuple[Any, Any, torch.Tensor, list[torch.Tensor]]:
        gpus = [torch.cuda.get_rng_state(device) for device in self._devices]
        return random.getstate(), np.random.get_state(), torch.get_rng_state(), gpus  # noqa: NPY002 -- as above


def reseed(seed: int, device: torch.device) -> None:
    """Seed every global random generator that data sets and layers draw from. Call it only inside `seeded`."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- as above
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def mix(seed: int, epoch: int) -> int:
    """Return a seed from two numbers; different epochs give unrelated streams."""
    return int(np.random.SeedSequence((seed % 2**64, epoch)).generate_state(1)[0])


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treat denormal numbers as zero, since a vanishing gate would otherwise slow a CPU down tenfold."""
    before = bool((torch.full((1,), 1e-310, dtype=torch.float64) * 1.0 == 0).item())
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
