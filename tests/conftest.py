"""What every test runs under: one thread, and the same random numbers every time."""

import random

import numpy as np
import pytest
import torch


def seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 -- what a test draws from unless it says otherwise
    torch.manual_seed(0)


torch.set_num_threads(1)
seed()  # for what test files draw when they are read


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test that fails, fails again."""
    seed()
