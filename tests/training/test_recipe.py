"""Schedules and optimiser factories."""

import pytest
import torch
from torch import nn

from fxsurgery.training import Hooks, Recipe, Task, adamw, constant, cosine, fit, sgd, steps_at


def test_schedules():
    assert constant()(0.7) == 1.0
    assert [cosine(0.1)(t) for t in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert cosine(0.0)(0.0) == 1.0
    assert [steps_at((0.5, 0.75))(t) for t in (0.4, 0.5, 0.8)] == pytest.approx([1.0, 0.1, 0.01])


def test_norms_and_biases_can_be_spared_from_decay():
    parameters = list(nn.Linear(2, 2).parameters())
    spared = sgd(0.1, weight_decay=0.5, decay_norms=False)(parameters)
    assert [g["weight_decay"] for g in spared.param_groups] == [0.5, 0.0]
    assert [g["weight_decay"] for g in sgd(0.1, weight_decay=0.5)(parameters).param_groups] == [0.5]
    assert [g["weight_decay"] for g in adamw(0.1)(parameters).param_groups] == [0.01, 0.0]


def test_the_schedule_multiplies_each_groups_rate():
    data = (torch.randn(8, 2), torch.zeros(8, dtype=torch.long))
    rates = []
    hooks = Hooks(before_step=lambda info: rates.append(info.learning_rate))
    recipe = Recipe(steps=4, optimizer=torch.optim.Adam, schedule=steps_at((0.5,)))
    fit(nn.Linear(2, 2), Task.of(data, data), recipe, hooks=hooks, device="cpu")
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])
