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
