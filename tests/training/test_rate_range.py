"""The learning-rate range test: high rates for a network that takes them, low ones for one that does not."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxsurgery.errors import DivergedError
from fxsurgery.training import Recipe, Task, fit, sgd
from fxsurgery.training.rate_range import MARGIN, STEPS, RangeTest, first_unstable
from nonempty import nonempty

WANTED = 0.05


def regression(scale=1.0, samples=64):
    x = torch.randn(samples, 8, generator=torch.Generator().manual_seed(0))
    return x, scale * x.sum(1, keepdim=True)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))


def rate_of(model, task, clip=None, **options):
    recipe = Recipe(steps=100, optimizer=sgd(1.0), gradient_clip=clip)
    return RangeTest(lambda: copy.deepcopy(model), task, recipe, sgd, WANTED, device="cpu", **options).run("fine-tune")


def task_of(scale):
    return Task.of(regression(scale), regression(scale), batch_size=16, loss=nn.MSELoss())


def test_a_network_that_trains_well_at_the_wanted_rate_gets_it():
    assert rate_of(net(), task_of(0.1), clip=1.0) == WANTED


def test_the_rate_is_one_at_which_training_does_not_diverge():
    task = task_of(100.0)
    with pytest.raises(DivergedError):
        fit(net(), task, Recipe(steps=200, optimizer=sgd(WANTED)), device="cpu")
    rate = rate_of(net(), task)
    assert 0 < rate < WANTED / 10, rate
    report = fit(net(), task, Recipe(steps=200, optimizer=sgd(rate)), device="cpu")
    assert report.score.loss < 0.5 * float(regression(100.0)[1].square().mean())


def test_the_same_seed_gives_the_same_rate_and_nothing_is_changed():
    x, y = regression(100.0)
    loader = DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=torch.Generator().manual_seed(3))
    task = Task.of(loader, (x, y), loss=nn.MSELoss())
    model = net().eval()
    before, state, own = copy.deepcopy(model.state_dict()), torch.get_rng_state(), loader.generator.get_state()
    assert rate_of(model, task) == rate_of(model, task)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(loader.generator.get_state(), own)
    assert all(torch.equal(value, before[name]) for name, value in nonempty(model.state_dict().items()))
    assert not model.training


def test_a_loss_that_is_not_finite_before_anything_trains_is_an_error():
    model = net()
    nn.init.constant_(model[0].weight, math.nan)
    with pytest.raises(
        DivergedError, match=r"stage 'fine-tune', step 1 of 32: .*before anything was trained"
    ) as caught:
        rate_of(model, task_of(1.0))
    assert not caught.value.retriable


def test_data_that_are_not_finite_are_blamed_and_not_the_rate():
    x, y = regression()
    y = y.clone()
    y[40] = math.inf
    task = Task.of((x, y), (x[:8], y[:8]), batch_size=8, loss=nn.MSELoss())
    with pytest.raises(DivergedError, match="1 infinite values of 8; clean the data") as caught:
        rate_of(net(), task, clip=1.0)
    assert not caught.value.retriable


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([], None),
        ([math.nan], 0),
        ([1.0] * STEPS, None),
        ([1.0] * 10 + [math.inf], 10),
        ([1.0] * 10 + [9.0] + [1.0] * 10, None),
        ([1.0] * 10 + [9.0, 9.0], 10),
        ([0.001, 0.004, 0.002, 0.001] * 4 + [0.008] * 4, None),
        ([0.001, 0.004, 0.002, 0.001] * 4 + [0.08] * 4, 16),
        ([-1.0] * 12 + [0.5] * 3, None),
        ([-1.0] * 12 + [1.5] * 3, 12),
        ([9.0] * 8 + [3.0, 2.0, 1.0, 0.5, 0.5, 0.5, 4.0, 4.0], 14),
    ],
)
def test_unstable_is_a_lasting_rise_beyond_the_noise(losses, step):
    assert first_unstable(losses) == step


def test_the_rates_of_the_test_end_above_the_wanted_one():
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append(self.param_groups[0]["lr"])
            super().step(closure)

    recipe = Recipe(steps=100, optimizer=sgd(1.0), gradient_clip=1.0)
    RangeTest(net, task_of(0.1), recipe, lambda rate: lambda p: Watched(p, lr=rate), WANTED, device="cpu").run("x")
    assert len(seen) == STEPS
    assert seen == sorted(seen)
    assert seen[0] < WANTED * 1e-3
    assert WANTED * MARGIN * 0.8 < seen[-1] < WANTED * MARGIN
