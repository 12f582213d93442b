"""Gates: where they stand, what they do, and that they leave without a trace."""

import pytest
import torch
from torch import nn

from fxsurgery.analysis.gating import gate_plan
from fxsurgery.capture import capture
from fxsurgery.gates import GateVector
from fxsurgery.passes import InsertGates, PruneChannels, RemoveGates
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, relative_error
from programs import program
from zoo import ZOO


def gated(start: Program) -> tuple[Program, GateVector]:
    result = InsertGates()(start).program
    [(_, vector)] = result.calls(GateVector)
    return result, vector


@pytest.mark.parametrize("name", ZOO)
def test_inserting_and_removing_is_the_identity(name: str):
    start = program(name)
    there = InsertGates()(start)
    back = RemoveGates()(there.program)
    assert (there.effect, back.effect) == (Effect.EXACT, Effect.EXACT)
    assert there.error == 0.0
    assert back.program.text() == start.text()


@pytest.mark.parametrize("name", ["Plain", "Residual", "InvertedResidual", "DenseCat"])
def test_a_closed_gate_is_a_removed_channel(name: str):
    start = program(name)
    move = next(iter(PruneChannels.candidates(start)))
    keep, plan = move.keep(start), gate_plan(start)
    closed, vector = gated(start)
    vector.mode = "hard"
    with torch.no_grad():
        vector.logits.copy_(torch.from_numpy(keep[plan.units]).float() - 0.5)
    assert max(map(relative_error, move(start).program.run_examples(), closed.run_examples())) < 1e-5


def test_gates_start_at_one_half_and_sharpen():
    vector = GateVector(3)
    vector.mode = "soft"
    assert vector().tolist() == [1.0, 0.5, 0.5, 0.5]
    with torch.no_grad():
        vector.logits.copy_(torch.tensor([-0.1, 0.0, 0.1]))
        vector.sharpness.fill_(1e4)
    assert vector().tolist() == [1.0, 0.0, 0.5, 1.0]


def test_removing_gates_that_do_something_is_lossy():
    start, vector = gated(program("Plain"))
    vector.mode = "soft"
    assert RemoveGates()(start).effect is Effect.LOSSY


def test_every_gate_gets_a_gradient():
    start, _ = gated(program("Residual"))
    model = start.trainable_copy().train()
    [vector] = [m for m in model.modules() if isinstance(m, GateVector)]
    vector.mode = "soft"
    many = torch.randn(32, *start.example_inputs[0].shape[1:], generator=torch.Generator().manual_seed(0))
    model(many).square().sum().backward()
    assert (vector.logits.grad != 0).all()


def test_gating_twice_is_refused():
    once = InsertGates()(program("Plain")).program
    again = InsertGates()(once)
    assert again.program is once
    assert again.refusals[0].reason == "the program has gates already"


def test_nothing_to_gate_is_refused_with_the_reason():
    start = capture(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), torch.ones(2, 3, 4, 4))
    result = InsertGates()(start)
    assert result.changes == 0
    assert "no channel can be removed" in result.refusals[0].reason
