"""Scores, and that taking them changes nothing."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxsurgery.errors import DataError
from fxsurgery.training import Task, evaluate

X, Y = torch.randn(10, 4, generator=torch.Generator().manual_seed(0)), torch.arange(10) % 3


def test_means_are_weighted_by_samples():
    model, task = nn.Linear(4, 3), Task.of((X, Y), (X, Y), batch_size=4)
    score = evaluate(model, task)
    with torch.no_grad():
        output = model(X)
    assert score.loss == pytest.approx(float(nn.functional.cross_entropy(output, Y)))
    assert score.metric == pytest.approx(float((output.argmax(1) == Y).float().mean()))
    assert score.samples == 10


def test_scores_in_eval_mode_and_puts_each_train_flag_back():
    model = nn.Sequential(nn.Dropout(0.9), nn.BatchNorm1d(4), nn.Linear(4, 3)).train()
    model[1].eval()
    before = model[1].running_mean.clone()
    task = Task.of((X, Y), (X, Y))
    assert evaluate(model, task) == evaluate(model, task)
    assert [m.training for m in model.modules()] == [True, True, False, True]
    assert torch.equal(before, model[1].running_mean)


def test_other_data_may_be_scored():
    task = Task.of((X, Y), (X, Y), test_data=(X[:5], Y[:5]))
    assert evaluate(nn.Linear(4, 3), task, task.test_data).samples == 5


def test_metric_of_ones_own():
    task = Task.of((X, Y), (X, Y), metric=lambda output, target: torch.tensor(0.25), metric_name="quarter")
    assert (evaluate(nn.Linear(4, 3), task).metric, task.metric_name) == (0.25, "quarter")


def test_metric_that_does_not_fit_is_told():
    task = Task.of((X, Y), (X, Y), metric=lambda output, target: output)
    with pytest.raises(DataError, match=r"metric cannot take output \(10, 3\) float32|gives no number"):
        evaluate(nn.Linear(4, 3), task)


def test_empty_data_are_refused():
    empty = DataLoader(TensorDataset(X[:1], Y[:1]), batch_size=2, drop_last=True)
    with pytest.raises(DataError, match="is empty"):
        evaluate(nn.Linear(4, 3), Task.of((X, Y), empty))


def test_data_that_are_not_finite_are_blamed_with_their_batch():
    broken = X.clone()
    broken[5, 2] = torch.nan
    task = Task.of((X, Y), (broken, Y), test_data=(X, Y), batch_size=4)
    with pytest.raises(
        DataError, match=r"^val_data: the loss of batch 1 is nan, since entry 0 has 1 NaN and 0 infinite"
    ):
        evaluate(nn.Linear(4, 3), task)
    with pytest.raises(DataError, match=r"^the data: the loss of batch 0"):
        evaluate(nn.Linear(4, 3), task, DataLoader(TensorDataset(broken, Y), batch_size=10))
    evaluate(nn.Linear(4, 3), task, task.test_data)


def test_values_that_are_not_finite_and_that_the_loss_leaves_out_are_the_users_own():
    gaps = torch.rand(10, 3)
    gaps[::3] = torch.nan
    task = Task.of((X, gaps), (X, gaps), loss=lambda output, target: (output - target)[~target.isnan()].square().mean())
    assert evaluate(nn.Linear(4, 3), task).loss > 0


def test_a_model_that_gives_no_finite_loss_on_finite_data_has_that_score():
    model = nn.Linear(4, 3)
    model.weight.data.fill_(torch.nan)
    assert evaluate(model, Task.of((X, Y), (X, Y))).loss != evaluate(model, Task.of((X, Y), (X, Y))).loss
