"""Values that are not finite: which are wrong, and how they are named."""

import math

import torch
from torch import nn

from fxsurgery.training.finite import not_finite, wrong_values


def test_weights_and_statistics_are_named_by_their_paths():
    model = nn.ModuleDict({"a": nn.Conv2d(1, 2, 3), "b": nn.Sequential(nn.BatchNorm2d(2)), "c": nn.Linear(2, 2)})
    assert not_finite(model) == []
    model["a"].weight.data[0] = math.inf
    model["c"].bias.data[1] = math.nan
    model["b"][0].running_var[0] = -math.inf
    assert not_finite(model) == ["a.weight", "c.bias", "b.0.running_var"]


def test_a_mask_may_be_infinite_but_not_nan():
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))
    model.register_buffer("whole", torch.arange(3))
    model.frozen = nn.Parameter(torch.tensor([0.0, -math.inf]), requires_grad=False)
    assert not_finite(model) == []
    model.mask[0, 0] = math.nan
    assert not_finite(model) == ["mask"]


def test_a_batch_of_any_structure_is_looked_through():
    good, bad = torch.zeros(4), torch.tensor([math.nan, math.inf, math.inf, 0.0])
    assert wrong_values((good, {"y": torch.arange(4)}, None, "text")) is None
    assert wrong_values(({"x": bad}, good)) == "entry 0.x has 1 NaN and 2 infinite values of 4"
    assert wrong_values(bad.to_sparse()) == "entry it has 1 NaN and 2 infinite values of 3"
