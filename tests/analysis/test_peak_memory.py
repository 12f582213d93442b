"""Peak activation memory, by hand and against an interpreter that frees what it no longer needs."""

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxsurgery.analysis.peak_memory import peak_activation_bytes
from fxsurgery.capture import capture
from fxsurgery.program import Program
from programs import program
from zoo import ZOO

FLOAT = 4


class Freeing(fx.Interpreter):
    """Runs a program and frees each value after its last use; notes the most bytes that there were at once."""

    def __init__(self, program: Program) -> None:
        super().__init__(program.graph_module)
        self.peak = 0
        state = (*program.graph_module.parameters(), *program.graph_module.buffers())
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in state}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        alive = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for tensor in pytree.tree_leaves([*self.env.values(), result])
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in self.weights
        }
        self.peak = max(self.peak, sum(alive.values()))
        return result


@pytest.mark.parametrize("name", ZOO)
def test_the_peak_is_what_an_interpreter_holds_that_frees_what_it_can(name: str):
    start = program(name)
    run = Freeing(start)
    with torch.no_grad():
        run.run(*start.examples.resized(1).leaves, enable_io_processing=False)
    assert peak_activation_bytes(start) == run.peak > 0


class Skip(nn.Module):
    """The input waits for the end of a wide branch."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(8, 100), nn.Linear(100, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.relu(self.wide(x)))


class InPlace(Skip):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.narrow(torch.relu_(self.wide(x)))


class Views(nn.Module):
    """Views take nothing, and keep what they are views of."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.view(-1, 2, 50).unbind(1)
        return (first * second).sum(1)


def test_a_skip_holds_its_input_meanwhile():
    start = capture(Skip().eval(), torch.ones(2, 8))
    assert peak_activation_bytes(start) == (8 + 100 + 100) * FLOAT


def test_an_operation_in_place_takes_nothing():
    start = capture(InPlace().eval(), torch.ones(2, 8))
    assert peak_activation_bytes(start) == (8 + 100 + 8) * FLOAT


def test_views_take_nothing():
    start = capture(Views().eval(), torch.ones(2, 100))
    assert peak_activation_bytes(start) == (100 + 50) * FLOAT


def test_it_is_that_of_one_sample_and_of_the_type_that_is_computed_in():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
    for batch in (1, 5):
        assert peak_activation_bytes(capture(model.eval(), torch.ones(batch, 4))) == 16 * FLOAT
    wide = capture(model.double().eval(), torch.ones(2, 4, dtype=torch.float64))
    assert peak_activation_bytes(wide) == 16 * 2 * FLOAT


def test_a_program_that_needs_numbers_is_run_for_real(monkeypatch: pytest.MonkeyPatch):
    start = program("Plain")
    expected = peak_activation_bytes(start)
    again = capture(start.trainable_copy(), *start.example_inputs)
    real = torch.nn.Conv2d.forward

    def refuses_meta(self: nn.Conv2d, x: Tensor) -> Tensor:
        if x.is_meta:
            raise RuntimeError("no numbers")
        return real(self, x)

    monkeypatch.setattr(torch.nn.Conv2d, "forward", refuses_meta)
    assert peak_activation_bytes(again) == expected
