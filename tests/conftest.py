"""What every test runs under: one thread, the same random numbers every time, and interrupts that interrupt."""

import random
import signal

import numpy as np
import pytest
import torch


def seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- what a test draws from unless it says otherwise
    torch.manual_seed(0)


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts what runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
seed()  # for what test files draw when they are read


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that fails, fails again."""
    seed()
