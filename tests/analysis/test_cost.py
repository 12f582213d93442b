"""Parameters and MACs: what is counted, and that a prediction is what comes out."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fxsurgery.analysis.cost import cost, cost_after, mac_terms
from fxsurgery.analysis.gating import gate_plan
from fxsurgery.analysis.structure import structure
from fxsurgery.passes import PruneChannels
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
    for move in PruneChannels.candidates(start):
        after, predicted = cost(move(start).program), cost_after(start, move.keep(start))
        assert (after.params, after.macs) == (predicted.params, predicted.macs)


@pytest.mark.parametrize("name", ["Plain", "InvertedResidual", "DenseCat", "Grouped"])
def test_expected_cost_at_hard_gates_is_the_cost(name: str):
    start = program(name)
    plan, terms = gate_plan(start), mac_terms(start)
    expected = terms.expected(plan)
    for move in PruneChannels.candidates(start):
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
