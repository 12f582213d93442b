"""Programs: what a run of the examples leaves alone."""

import torch
from torch import nn

from fxsurgery import capture


def test_an_in_place_first_operation_leaves_the_examples_alone():
    program = capture(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4, 2)).eval(), -torch.ones(2, 1, 4))
    first = program.run_examples()
    assert torch.equal(first[0], program.run_examples()[0])
    assert bool((program.example_inputs[0] == -1).all())
