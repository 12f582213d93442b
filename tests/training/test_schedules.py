"""Learning-rate schedules by name, and a user's own function."""

import math

import pytest
import torch
from torch import nn

from fxsurgery.errors import TrainingError
from fxsurgery.training import (
    Hooks,
    Recipe,
    Task,
    constant,
    cosine,
    fit,
    linear,
    one_cycle,
    require_factors,
    schedule_of,
    sgd,
    steps_at,
)


def test_schedules():
    assert constant()(0.7) == 1.0
    assert [constant(0.2)(t) for t in (0.0, 0.1, 0.2, 1.0)] == pytest.approx([0.0, 0.5, 1.0, 1.0])
    assert [cosine(0.1)(t) for t in (0.05, 0.1, 0.55, 1.0)] == pytest.approx([0.5, 1.0, 0.5, 0.0])
    assert cosine(0.0)(0.0) == 1.0
    assert [linear(0.2)(t) for t in (0.1, 0.2, 0.4, 1.0)] == pytest.approx([0.5, 1.0, 0.75, 0.0])
    assert [steps_at((0.5, 0.75))(t) for t in (0.4, 0.5, 0.8)] == pytest.approx([1.0, 0.1, 0.01])
    assert [steps_at((0.5,), 0.5, warmup=0.1)(t) for t in (0.05, 0.2, 0.5)] == pytest.approx([0.5, 1.0, 0.5])
    assert [one_cycle()(t) for t in (0.0, 0.15, 0.3, 0.65, 1.0)] == pytest.approx([0.04, 0.52, 1.0, 0.5, 0.0])


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("cosine", cosine(0.1)), ("linear", linear(0.1)), ("step", steps_at((0.5, 0.75), warmup=0.1)),
        ("one-cycle", one_cycle()), ("constant", constant(0.1)),
    ],
)  # fmt: skip
def test_a_name_stands_for_a_schedule_with_a_warm_up(name, same):
    points = [i / 40 for i in range(41)]
    assert [schedule_of(name, 0.1)(t) for t in points] == [same(t) for t in points]


def test_a_function_is_taken_as_it_is():
    assert schedule_of(math.sqrt, 0.5) is math.sqrt


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (lambda t: 1 - 2 * t, r"gives -0\.\d+ at 0.75 of the training; it must give a finite number of at least 0"),
        (lambda t: math.nan, "gives nan at 0 of"),
        (torch.tensor, r"gives tensor\(0.\) at 0"),
        (lambda t: 1 / t, "raises ZeroDivisionError at 0 of the training: .*; pass a function from a fraction"),
        (lambda: 1.0, "raises TypeError"),
    ],
)
def test_a_function_that_gives_no_factor_is_refused(schedule, message):
    with pytest.raises(TrainingError, match=message):
        require_factors(schedule)


def test_a_factor_that_is_none_in_the_middle_of_a_training_is_an_error():
    data = (torch.randn(8, 2), torch.zeros(8, dtype=torch.long))
    recipe = Recipe(steps=4, optimizer=sgd(0.1), schedule=lambda t: 1.0 if t < 0.5 else math.inf)
    seen = []
    with pytest.raises(TrainingError, match=r"stage 'training': the schedule gives inf at 0.625 of the training"):
        fit(
            nn.Linear(2, 2), Task.of(data, data), recipe, device="cpu",
            hooks=Hooks(after_step=lambda info: seen.append(info.learning_rate)),
        )  # fmt: skip
    assert seen == [0.1, 0.1]
