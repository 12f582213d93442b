"""Nothing is tied that need not be, and what is removed is gone exactly."""

import numpy as np
import pytest
import torch

from analysis.awkward import AWKWARD, HEAD_DIM_COUNTS
from fxsurgery.analysis.structure import head_dim_structure, structure
from fxsurgery.capture import capture
from fxsurgery.ops.propagation_state import Attention
from fxsurgery.passes.prune_channels import PruneChannels
from fxsurgery.program import Program
from nonempty import nonempty
from zoo import lively

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections")


def program(name: str) -> Program:
    build, example, _ = AWKWARD[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build()
    return capture(lively(model).eval(), example)


def random_move(start: Program, seed: int, share: float = 0.3, attention: Attention = "heads") -> PruneChannels:
    """Remove a random share of all units; those without which a tensor would be empty stay."""
    facts, generator = PruneChannels((), attention=attention).facts(start), np.random.default_rng(seed)
    units = [(g.name, i, int(u)) for g in facts.groups for i, u in enumerate(g.units)]
    gone = {units[i][2] for i in generator.permutation(len(units))[: max(1, round(share * len(units)))]}
    while empty := facts.empty_dims(facts.mask(np.asarray(sorted(gone), np.int64))):
        gone -= set(empty)
    drop = dict[str, list[int]]()
    for name, position, unit in units:
        if unit in gone:
            drop.setdefault(name, []).append(position)
    return PruneChannels(tuple((name, tuple(places)) for name, places in drop.items()), attention=attention)


@pytest.mark.parametrize("name", AWKWARD)
def test_as_many_units_are_free_as_can_be(name: str):
    facts = structure(program(name))
    assert {g.name: len(g.units) for g in facts.groups if len(g.units)} != {}
    assert sum(len(g.units) for g in facts.groups) == AWKWARD[name][2], {g.name: len(g.units) for g in facts.groups}


@pytest.mark.parametrize("name", AWKWARD)
def test_removal_equals_silence(name: str):
    start = program(name)
    for seed in range(4):
        result = random_move(start, seed)(start)
        assert result.error is not None
        assert result.error <= 1e-5
        assert params(result.program) < params(start)


@pytest.mark.parametrize("name", HEAD_DIM_COUNTS)
def test_attention_can_lose_channels_of_every_head(name: str):
    start = program(name)
    facts = head_dim_structure(start)
    found = {g.name: len(g.units) for g in facts.groups}
    assert sum(found.values()) == HEAD_DIM_COUNTS[name], found
    for seed in range(4):
        result = random_move(start, seed, attention="head_dim")(start)
        assert result.error is not None
        assert result.error <= 1e-5
        assert params(result.program) < params(start)


def params(of: Program) -> int:
    return sum(p.numel() for p in of.graph_module.parameters())


@pytest.mark.parametrize("name", AWKWARD)
def test_a_second_round_and_a_training_step_work(name: str):
    first = random_move(program(name), 0, 0.2)(program(name)).program
    second = random_move(first, 1, 0.2)(first)
    assert second.error is not None
    assert second.error <= 1e-5
    model = second.program.trainable_copy().train()
    model(*(x.clone() for x in second.program.example_inputs)).square().mean().backward()
    assert all(p.grad is not None for p in nonempty(model.parameters()))
