"""Early stopping: when it ends a training, which weights are kept, and that an interrupted training ends the same."""

import copy

import pytest
import torch
from torch import nn

from fxsurgery.errors import TrainingError
from fxsurgery.training import Hooks, Progress, Recipe, Task, evaluate, fit, sgd
from fxsurgery.training.early_stopping import EarlyStopping
from fxsurgery.training.evaluate import Score
from nonempty import nonempty


class Scripted:
    """A metric that gives one value after the other, whatever the outputs are."""

    def __init__(self, values, *, higher_is_better=True):
        self.values, self.higher_is_better, self.calls = list(values), higher_is_better, [0]

    def __call__(self, output, target):
        self.calls[0] += 1
        return self.values[self.calls[0] - 1]


class StoppedError(Exception):
    """Stands for a kill."""


class Kept:
    def __init__(self, at):
        self.at, self.snapshot = at, None

    def last(self):
        return self.snapshot

    def wants(self, step, steps):
        return step == self.at

    def keep(self, snapshot):
        self.snapshot = copy.deepcopy(snapshot)


def data():
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    return x, x.argmax(1)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 3)


def trained(metric, patience, *, keeper=None, hooks=None, steps=10, progress=None, model=None):
    """Train with a validation after each step; return the weights after each step as well."""
    model, weights = model or net(), []
    task = Task.of(data(), data(), batch_size=16, metric=metric)
    keep = Hooks(after_step=lambda info: weights.append(model.weight.detach().clone()))
    recipe = Recipe(steps=steps, optimizer=sgd(0.5), early_stopping=patience)
    report = fit(model, task, recipe, device="cpu", hooks=hooks or keep, keeper=keeper, progress=progress)
    return model, report, weights


def test_it_ends_after_so_many_validations_without_a_better_one_and_keeps_the_best_weights():
    progress = Progress.quiet()
    model, report, weights = trained(Scripted([0.1, 0.5, 0.4, 0.5, 0.3, 0.9]), 3, progress=progress)
    assert report.steps == len(weights) == 5, "an equal score is no better one"
    assert report.score.metric == 0.5
    assert torch.equal(model.weight, weights[1])
    assert not torch.equal(weights[1], weights[-1])
    assert [record["step"] for record in progress.history] == [1, 2, 3, 4, 5]


def test_a_better_validation_begins_the_count_anew_and_the_best_weights_are_kept_at_the_end():
    model, report, weights = trained(Scripted([0.1, 0.0, 0.2, 0.1, 0.3, 0.2]), 2, steps=6)
    assert report.steps == 6
    assert torch.equal(model.weight, weights[4])
    assert report.score.metric == 0.3


def test_a_lower_loss_is_better_and_nan_is_the_worst():
    nan = float("nan")
    model, report, weights = trained(Scripted([nan, 3.0, 2.0, nan, 2.5], higher_is_better=False), 2)
    assert report.steps == 5
    assert torch.equal(model.weight, weights[2])


def test_without_it_the_last_weights_are_kept():
    model, report, weights = trained(Scripted([0.9, *[0.1] * 9]), None)
    assert report.steps == 10
    assert torch.equal(model.weight, weights[-1])


def test_it_validates_once_an_epoch_however_many_there_are():
    task, recipe = Task.of(data(), data(), batch_size=4), Recipe(steps=40, optimizer=sgd(0.1), early_stopping=50)
    progress, plain = Progress.quiet(), Progress.quiet()
    fit(net(), task, recipe, device="cpu", progress=progress)
    fit(net(), task, Recipe(steps=40, optimizer=sgd(0.1)), device="cpu", progress=plain)
    assert [r["step"] for r in progress.history if r["metric"] is not None] == list(range(4, 41, 4))
    assert [r["step"] for r in plain.history if r["metric"] is not None] == [8, 16, 24, 32, 40]


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_an_interrupted_training_ends_the_same(at):
    values = [0.1, 0.5, 0.4, 0.45, 0.3, 0.9]
    whole, report, _ = trained(Scripted(values), 3)
    keeper = Kept(at)

    def stop(info):
        if info.step == at:
            raise StoppedError

    with pytest.raises(StoppedError):
        trained(Scripted(values), 3, keeper=keeper, hooks=Hooks(before_step=stop))
    assert keeper.snapshot["early_stopping"]["waited"] == max(0, at - 2)
    keeper.at = None
    again, resumed, _ = trained(Scripted(values[at:]), 3, keeper=keeper)
    assert torch.equal(again.weight, whole.weight)
    assert (resumed.steps, resumed.score) == (report.steps, report.score)


def test_a_snapshot_of_another_patience_or_a_damaged_one_is_refused():
    keeper = Kept(2)
    trained(Scripted([0.1] * 10), 5, keeper=keeper)
    with pytest.raises(TrainingError, match="patience was 5, is 3"):
        trained(Scripted([0.1] * 10), 3, keeper=keeper)
    keeper.snapshot["early_stopping"]["waited"] = "two"
    with pytest.raises(TrainingError, match="'early_stopping' is not of its type"):
        trained(Scripted([0.1] * 10), 5, keeper=keeper)


def test_the_state_comes_back_as_it_was():
    model, first, second = net(), EarlyStopping(3, higher_is_better=True), EarlyStopping(3, higher_is_better=True)
    first.observe(Score(0.5, 1.0, 16), 1, model)
    weight = model.weight.detach().clone()
    with torch.no_grad():
        model.weight.zero_()
    first.observe(Score(0.4, 1.0, 16), 2, model)
    second.restore(first.state())
    assert (second.waited, second.best, second.step) == (1, Score(0.5, 1.0, 16), 1)
    second.restore_best(model)
    assert torch.equal(model.weight, weight)


def test_statistics_are_those_of_the_best_weights():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 3))
    task = Task.of(data(), data(), batch_size=16, metric=Scripted([0.9, 0.1, 0.1]))
    means = []
    hooks = Hooks(after_step=lambda info: means.append(model[0].running_mean.clone()))
    fit(model, task, Recipe(steps=9, optimizer=sgd(0.1), early_stopping=2), device="cpu", hooks=hooks)
    assert len(nonempty(means)) == 3
    assert torch.equal(model[0].running_mean, means[0])
    assert not torch.equal(means[0], means[2])
    assert evaluate(model, Task.of(data(), data())).samples == 16
