"""Parameters and MACs: what is counted, and that a prediction is what comes out."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fxsurgery.analysis.cost import cost, cost_after, mac_terms
from fxsurgery.analysis.gating import gate_plan
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.passes import PruneChannels
from nonempty import nonempty
from programs import program
from zoo import ZOO


@pytest.mark.parametrize("name", ZOO)
def test_macs_agree_with_torchs_flop_counter(name: str):
    start = program(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        start(*(x[:1] for x in start.example_inputs))
    assert cost(start).macs * 2 == counter.get_total_flops()


@pytest.mark.parametrize("name", ZOO)
def test_params_are_all_parameters(name: str):
    start = program(name)
    assert cost(start).params == sum(p.numel() for p in start.graph_module.parameters())


@pytest.mark.parametrize("name", ZOO)
def test_predicted_cost_is_the_cost_after_the_pass(name: str):
    start = program(name)
    for move in nonempty(PruneChannels.candidates(start)):
        after, predicted = cost(move(start).program), cost_after(start, move.keep(start))
        assert (after.params, after.macs) == (predicted.params, predicted.macs)


@pytest.mark.parametrize("name", ["Plain", "InvertedResidual", "DenseCat", "Grouped"])
def test_expected_cost_at_hard_gates_is_the_cost(name: str):
    start = program(name)
    plan, terms = gate_plan(start), mac_terms(start)
    expected = terms.expected(plan)
    for move in nonempty(PruneChannels.candidates(start)):
        keep = move.keep(start)
        gates = torch.cat([torch.ones(1), torch.from_numpy(keep[plan.units]).float()])
        assert float(expected(gates)) == pytest.approx(terms.total(keep) / cost(start).macs, rel=1e-5)


def test_expected_cost_has_a_gradient_for_every_unit():
    start = program("Residual")
    plan = gate_plan(start)
    gates = torch.full((1 + len(plan.units),), 0.5, requires_grad=True)
    mac_terms(start).expected(plan)(gates).backward()
    assert (gates.grad[1:] > 0).all()


def test_uncounted_operations_are_named():
    assert "relu" in cost(program("Plain")).uncounted
    assert np.isin(["convolution", "view"], structure(program("Plain")).uncounted).sum() == 0


class TokenMixer(nn.Module):
    """Linear layers over positions: the channels only pass through them, and take their share of the work along."""

    def __init__(self):
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.up, self.down = nn.Linear(64, 16), nn.Linear(16, 64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        mixed = self.down(self.up(y.flatten(2)).relu()).view(-1, 8, 8, 8)
        return self.c(y + mixed)


def test_channels_that_pass_a_linear_layer_are_counted_in_its_work():
    start = capture(TokenMixer().eval(), torch.linspace(-1, 1, 384).reshape(2, 3, 8, 8))
    for move in nonempty(PruneChannels.candidates(start)):
        assert cost(move(start).program).macs == cost_after(start, move.keep(start)).macs
