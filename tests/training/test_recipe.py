"""Schedules, optimizer factories, and batches that accumulate."""

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from fxsurgery.errors import DeviceError, TrainingError
from fxsurgery.training import (
    Hooks,
    Recipe,
    Task,
    adamw,
    constant,
    cosine,
    fit,
    sgd,
    steps_at,
    steps_for,
    task_objective,
)
from nonempty import nonempty


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


def learned(batch_size, *, penalty=False, device="cpu", **options):
    """The weights of a net without batch norm, and what was told of each step."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(48, 5, generator=torch.Generator().manual_seed(0))
    task, told = Task.of((x, x.argmax(1) % 3), (x, x.argmax(1) % 3), batch_size=batch_size), []

    def penalized(model, batch):
        task, extra = batch.loss(batch.predict(model)), model[0].weight.square().sum()
        return task + extra, {"task": task, "penalty": extra}

    hooks = Hooks(
        objective=penalized if penalty else task_objective,
        after_step=lambda info: told.append((info.step, info.steps, info.epoch, info.loss, info.learning_rate)),
    )
    recipe = Recipe(steps=7, optimizer=sgd(0.5), schedule=cosine(), gradient_clip=1.0, **options)
    report = fit(model, task, recipe, hooks=hooks, device=device)
    return [p.detach() for p in model.parameters()], told, (report.steps, report.epochs, report.samples)


@pytest.mark.parametrize("penalty", [False, True])
def test_two_batches_that_accumulate_are_one_twice_as_large(penalty):
    one, other = learned(16, penalty=penalty), learned(8, accumulate=2, penalty=penalty)
    torch.testing.assert_close(one[0], other[0], rtol=1e-5, atol=1e-6)
    assert [t[:3] for t in nonempty(one[1])] == [t[:3] for t in other[1]]
    assert [t[3] for t in one[1]] == pytest.approx([t[3] for t in other[1]], rel=1e-5)
    assert [t[4] for t in nonempty(one[1])] == [t[4] for t in other[1]]
    assert one[2] == other[2] == (7, 3, 112)


def test_what_a_users_accelerator_accumulates_is_honored():
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    try:
        wanted = learned(8, accumulate=2)[0]
        for accumulate in (1, 2):
            found = learned(8, accumulate=accumulate, device=accelerator)[0]
            assert all(torch.equal(a, b) for a, b in zip(nonempty(wanted), found, strict=True))
        with pytest.raises(DeviceError, match="recipe accumulates 3 batches a step, the Accelerator 2"):
            learned(8, accumulate=3, device=accelerator)
    finally:
        accelerator.state._reset_state(reset_partial_state=True)


def test_steps_for_epochs():
    x = torch.zeros(48, 5)
    task = Task.of((x, x), (x, x), batch_size=8)
    assert steps_for(task, 10, min_steps=1) == 60
    assert steps_for(task, 10, min_steps=1, accumulate=4) == 15
    assert steps_for(task, 0.5, min_steps=1, accumulate=4) == 1
    assert (steps_for(task, 1), steps_for(task, 1000, max_steps=300), steps_for(task, 0)) == (200, 300, 0)


def test_counting_a_stream_leaves_random_states_alone():
    class Noise(IterableDataset):
        def __iter__(self):
            return iter(torch.rand(9, 3))

    before = torch.get_rng_state()
    assert steps_for(Task(DataLoader(Noise(), 2), DataLoader(Noise(), 2)), 3, min_steps=1) == 15
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accumulate": 0}, "accumulate=0: a step takes at least 1 batch"),
        ({"gradient_clip": 0.0}, "gradient_clip=0.0: it must be greater than 0; leave it out"),
        ({"optimizer": torch.optim.LBFGS}, "LBFGS takes a closure"),
        ({"optimizer": list}, "must make a torch.optim.Optimizer; it made a list"),
    ],
    ids=str,
)
def test_a_recipe_that_cannot_be_followed_is_refused(options, message):
    x = torch.zeros(4, 2)
    with pytest.raises(TrainingError, match=message):
        fit(nn.Linear(2, 2), Task.of((x, x), (x, x)), Recipe(**{"steps": 1, "optimizer": sgd(0.1), **options}))
