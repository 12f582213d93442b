"""Programs: what a run of the examples leaves alone."""

import torch
from torch import nn

from fxsurgery import capture
from fxsurgery.edit import Editor


def test_an_in_place_first_operation_leaves_the_examples_alone():
    program = capture(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2)).eval(), -torch.ones(2, 1, 4))
    first = program.run_examples()
    assert torch.equal(first[0], program.run_examples()[0])
    assert bool((program.example_inputs[0] == -1).all())


class Precise(nn.Module):
    """It computes in float32 whatever its own type is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).to(torch.float32).float()
        return self.last(x * torch.arange(x.shape[1], dtype=torch.float32))


def test_in_double_nothing_is_rounded_to_float32():
    start = capture(Precise().eval(), torch.randn(3, 4))
    (wide,) = start.in_double().run_examples()
    assert wide.dtype == torch.float64
    assert 0 < (wide - start.run_examples()[0]).abs().max() < 1e-4
    assert start.run_examples()[0].dtype == torch.float32


def test_an_edit_of_modules_alone_leaves_the_compiled_code_and_the_program_as_they_were():
    start = capture(nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(2, 4))
    before = start.run_examples()[0]
    edit = Editor(start)
    edit.replace_module("0", nn.Linear(4, 5))
    wider = edit.finish("wider")
    assert wider.run_examples()[0].shape == (2, 5)
    assert torch.equal(start.run_examples()[0], before)
    # What is edited later is compiled for itself.
    (last,) = [n for n in wider.nodes if n.op == "output"]
    again = Editor(wider)
    again.set_argument(last, 0, next(n for n in wider.nodes if n.op == "placeholder"))
    again.erase(next(n for n in reversed(wider.nodes) if n.op == "call_module"))
    assert again.finish("short").run_examples()[0].shape == (2, 4)
    assert wider.run_examples()[0].shape == (2, 5)
    assert start.graph_module.code == wider.graph_module.code
    assert wider.trainable_copy()(torch.randn(3, 4)).shape == (3, 5)
