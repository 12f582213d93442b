"""What every test runs under: one thread, the same random numbers every time, and interrupts that interrupt."""

import random
import signal

import numpy as np
import pytest
import torch

from fxsurgery.inputs import Inputs
from fxsurgery.program import Program
from runs_counted import Runs


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


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    """The runs of programs from now on."""
    found, outputs = Runs(), Program.outputs

    def noted(program: Program, inputs: Inputs) -> list[torch.Tensor]:
        found.append((program, inputs.batch))
        return outputs(program, inputs)

    monkeypatch.setattr(Program, "outputs", noted)
    return found
