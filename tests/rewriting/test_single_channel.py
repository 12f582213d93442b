"""Layers of a single output: widening them keeps the outputs, whatever reads them, and the copies come apart."""

import pytest
import torch
from torch import Tensor, nn

from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import SpecError
from fxsurgery.passes import Widen
from fxsurgery.program import Program
from fxsurgery.rewriting.single_channel import can_copy, single_channel_layers
from fxsurgery.surgery import Effect
from zoo import lively


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def captured(model: nn.Module, *shape: int) -> Program:
    return capture(lively(model).eval(), drawn(*shape))


class Joined(nn.Module):
    """A map of one channel beside others, behind one batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.more = nn.Conv2d(2, 1, 3, padding=1), nn.Conv2d(2, 3, 1)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(torch.cat([self.more(x), self.one(x)], 1)))).mean((2, 3))


class Gated(nn.Module):
    """A map of one channel that scales all channels of another."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.body, self.head = nn.Conv2d(2, 1, 1), nn.Conv2d(2, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x) * torch.sigmoid(self.gate(x))).mean((2, 3))


CASES: dict[str, tuple[nn.Module, tuple[int, ...], str]] = {
    "cell": (
        nn.Sequential(
            nn.Conv2d(2, 1, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(1), nn.ReLU(), nn.Flatten(), nn.Linear(9, 3)
        ),
        (4, 2, 6, 6),
        "0",
    ),
    "convolutions": (
        nn.Sequential(nn.Conv1d(2, 1, 3, bias=False), nn.PReLU(), nn.Conv1d(1, 3, 3), nn.Flatten(), nn.Linear(24, 2)),
        (4, 2, 12),
        "0",
    ),
    "dense": (nn.Sequential(nn.Linear(4, 1), nn.Tanh(), nn.Linear(1, 3)), (5, 4), "0"),
    "dense over a sequence": (nn.Sequential(nn.Linear(4, 1), nn.GELU(), nn.Linear(1, 3)), (5, 6, 4), "0"),
    "dense with a norm": (nn.Sequential(nn.Linear(4, 1), nn.BatchNorm1d(1), nn.ReLU(), nn.Linear(1, 3)), (5, 4), "0"),
    "joined": (Joined(), (4, 2, 5, 5), "one"),
}


@pytest.mark.parametrize("name", CASES)
def test_copies_keep_the_outputs_in_both_modes(name: str):
    model, shape, path = CASES[name]
    start = captured(model, *shape)
    assert list(single_channel_layers(start)) == [path]
    assert can_copy(start, path, 3)
    result = Widen(((path, 3),), seed=2)(start)
    assert result.effect is Effect.EXACT
    widened = dict(result.program.graph_module.named_parameters())
    assert torch.equal(widened[f"{path}.weight"], start.graph_module.get_parameter(f"{path}.weight")[[0, 0, 0, 0]])
    x = drawn(7, *shape[1:], seed=1)
    assert relative_error(result.program(x), start(x)) < 1e-5
    live, before = result.program.trainable_copy().train(), start.trainable_copy().train()
    assert relative_error(live(x), before(x)) < 1e-5


@pytest.mark.parametrize("name", CASES)
def test_copies_come_apart_in_training(name: str):
    model, shape, path = CASES[name]
    live = Widen(((path, 3),))(captured(model, *shape)).program.trainable_copy().train()
    optimizer = torch.optim.SGD(live.parameters(), lr=0.05)
    for step in range(3):
        optimizer.zero_grad()
        live(drawn(16, *shape[1:], seed=step)).square().mean().backward()
        optimizer.step()
    rows = live.get_parameter(f"{path}.weight").detach().flatten(1)
    assert len(rows.unique(dim=0)) == 4


def test_the_widened_layer_is_a_channel_group_from_then_on():
    model, shape, path = CASES["cell"]
    once = Widen(((path, 1),))(captured(model, *shape)).program
    assert not single_channel_layers(once)
    again = Widen(((path, 2),))(once)
    assert again.changes
    assert len(again.program.graph_module.get_parameter(f"{path}.weight")) == 4


def test_candidates_name_it_where_it_can_be_widened():
    named = [move.add for move in Widen.candidates(captured(Joined(), 4, 2, 5, 5), lambda width: 2 * width)]
    assert named == [(("more", 6),), (("one", 2),)]
    gate = captured(Gated(), 4, 2, 5, 5)
    assert list(single_channel_layers(gate)) == ["gate"]
    assert [move.add[0][0] for move in Widen.candidates(gate)] == ["body"]
    (refusal,) = Widen((("gate", 2),))(gate).refusals
    assert "cannot process the changed map" in refusal.reason


def test_a_layer_whose_output_is_given_out_stays():
    start = captured(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), 5, 3)
    assert [move.add[0][0] for move in Widen.candidates(start)] == ["0"]
    (refusal,) = Widen((("2", 2),))(start).refusals
    assert "is an output of the program" in refusal.reason


def test_what_has_no_meaning_is_told():
    start = captured(Joined(), 4, 2, 5, 5)
    with pytest.raises(SpecError, match="0 units to add; it must be at least 1"):
        Widen((("one", 0),))(start)
    with pytest.raises(SpecError, match="widen one in a pass"):
        Widen((("one", 1), ("more", 1)))(start)
