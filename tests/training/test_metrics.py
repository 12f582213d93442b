"""Metrics by name, and which direction is better."""

import sys
from functools import partial

import pytest
import torch
from torch import nn

from fxsurgery import DataError, MissingExtraError
from fxsurgery.training import Task, evaluate
from fxsurgery.training.metrics import ALIASES, BUILT_IN
from fxsurgery.training.torch_metric import TorchMetric
from nonempty import nonempty

GENERATOR = torch.Generator().manual_seed(3)
X = torch.randn(50, 6, generator=GENERATOR)
CLASSES = torch.randint(0, 4, (50,), generator=GENERATOR)
VALUES = 100 + torch.randn(50, 4, generator=GENERATOR)


class Offset(nn.Module):
    """A linear layer with a lively output of four values."""

    def __init__(self, offset: float = 0.0):
        super().__init__()
        self.linear, self.offset = nn.Linear(6, 4), offset
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(4, 6, generator=torch.Generator().manual_seed(1)))
            self.linear.bias.zero_()

    def forward(self, x):
        return self.linear(x) + self.offset


def classified(metric, **options):
    return Task.of((X, CLASSES), (X, CLASSES), batch_size=16, metric=metric, **options)


def regressed(metric, **options):
    return Task.of((X, VALUES), (X, VALUES), batch_size=16, loss=nn.MSELoss(), metric=metric, **options)


def test_top_k_counts_targets_among_the_k_largest():
    model = Offset().eval()
    best = model(X).topk(2, dim=1).indices
    expected = (best == CLASSES[:, None]).any(1).double().mean().item()
    task = classified("top2")
    assert (task.metric_name, task.higher_is_better) == ("top2", True)
    assert evaluate(model, task).metric == pytest.approx(expected)
    assert evaluate(model, classified("top-4")).metric == 1.0
    assert evaluate(model, classified("Top1")).metric == evaluate(model, classified("accuracy")).metric
    assert 0 < evaluate(model, classified("accuracy")).metric < expected < 1


def test_top_k_leaves_out_the_targets_that_the_loss_leaves_out():
    some = CLASSES.clone()
    some[::2] = 9
    task = Task.of((X, some), (X, some), loss=nn.CrossEntropyLoss(ignore_index=9), metric="top2")
    model = Offset().eval()
    best = model(X[1::2]).topk(2, dim=1).indices
    assert evaluate(model, task).metric == pytest.approx((best == CLASSES[1::2, None]).any(1).double().mean().item())


def test_top_k_refuses_fewer_classes_than_k():
    with pytest.raises(DataError, match=r"top5 cannot take output .* of at least 5 classes"):
        evaluate(Offset(), classified("top5"))


def test_regression_metrics_are_those_of_the_whole_split():
    model = Offset(100.0).eval()
    error = (model(X) - VALUES).double()
    r2 = 1 - error.square().sum(0) / (VALUES.double() - VALUES.double().mean(0)).square().sum(0)
    expected = {
        "mse": error.square().mean(), "mae": error.abs().mean(), "rmse": error.square().mean().sqrt(), "r2": r2.mean(),
    }  # fmt: skip
    for name, value in nonempty(expected.items()):
        task = regressed(name)
        assert evaluate(model, task).metric == pytest.approx(value.item(), rel=1e-5)
        assert task.higher_is_better == (name == "r2")


def test_regression_metrics_refuse_shapes_that_would_broadcast():
    task = Task.of((X, VALUES[:, 0]), (X, VALUES[:, 0]), loss=lambda o, t: o.mean(), metric="r2")
    with pytest.raises(DataError, match="r2 needs outputs and targets of the same shape"):
        evaluate(Offset(), task)


@pytest.mark.parametrize("name", ["MulticlassF1Score", "torchmetrics:MulticlassF1Score", "F1Score", "f1"])
def test_a_torchmetrics_name_learns_the_number_of_classes_from_the_outputs(name):
    import torchmetrics

    model = Offset().eval()
    expected = torchmetrics.classification.MulticlassF1Score(num_classes=4)
    expected.update(model(X), CLASSES)
    task = classified(name)
    assert (task.metric_name, task.higher_is_better) == (name, True)
    for _ in range(2):  # an evaluation starts from nothing
        assert evaluate(model, task).metric == pytest.approx(expected.compute().item(), rel=1e-6)


def test_a_short_name_is_binary_or_multilabel_as_the_data_are():
    import torchmetrics

    labels = (VALUES > 100).float()
    several = Task.of((X, labels), (X, labels), loss=nn.BCEWithLogitsLoss(), metric="f1")
    one = Task.of((X, labels[:, :1]), (X, labels[:, :1]), loss=nn.BCEWithLogitsLoss(), metric="f1")
    model = Offset().eval()
    single = nn.Sequential(model, nn.Linear(4, 1)).eval()
    multilabel = torchmetrics.classification.MultilabelF1Score(num_labels=4)
    binary = torchmetrics.classification.BinaryF1Score()
    multilabel.update(model(X), labels.long())
    binary.update(single(X)[:, 0], labels[:, 0].long())
    assert evaluate(model, several).metric == pytest.approx(multilabel.compute().item(), rel=1e-6)
    assert evaluate(single, one).metric == pytest.approx(binary.compute().item(), rel=1e-6)
    assert 0 < binary.compute() < 1


def test_the_direction_of_a_torchmetrics_name_is_that_of_its_class():
    assert not regressed("MeanSquaredError").higher_is_better
    assert regressed("torchmetrics:R2Score").higher_is_better
    value = evaluate(Offset(100.0), regressed("MeanSquaredError")).metric
    assert value == pytest.approx(evaluate(Offset(100.0), regressed("mse")).metric, rel=1e-5)


@pytest.mark.parametrize("name", [*nonempty(BUILT_IN), *nonempty(ALIASES)])
def test_every_listed_name_is_a_metric(name):
    assert classified(name).metric_name == name


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acuracy", r"metric='acuracy': there is no metric of this name; did you mean 'accuracy'"),
        ("MulticlassF1Scor", "did you mean 'MulticlassF1Score'"),
        ("multiclassf1score", "did you mean 'MulticlassF1Score'"),
        ("zzz", "take one of accuracy, top5, mse"),
        ("ConfusionMatrix", "does not state whether a higher value is better; build the data"),
        ("PearsonCorrCoef", "does not state whether a higher value is better"),
        ("", "there is no metric of this name"),
    ],
)
def test_a_name_without_a_metric_is_refused_at_once(name, message):
    with pytest.raises(DataError, match=message):
        classified(name)


def test_a_metric_that_needs_more_arguments_asks_for_an_instance():
    with pytest.raises(DataError, match=r"'MulticlassFBetaScore' needs arguments: .*pass an instance"):
        evaluate(Offset(), classified("MulticlassFBetaScore"))


def test_without_torchmetrics_the_extra_is_named(monkeypatch):
    for name in [one for one in sys.modules if one.partition(".")[0] == "torchmetrics"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.setattr("fxsurgery.training.torch_metric.find_spec", lambda _: None)
    monkeypatch.setattr("fxsurgery.training.metrics.is_installed", lambda: False)
    with pytest.raises(MissingExtraError, match=r"pip install 'fxsurgery\[torchmetrics\]'"):
        TorchMetric("MulticlassF1Score")
    with pytest.raises(MissingExtraError, match=r"pip install 'fxsurgery\[torchmetrics\]'"):
        classified("F1Score")
    with pytest.raises(DataError, match="did you mean 'accuracy'"):
        classified("acuracy")
    assert classified("top2").metric_name == "top2"


def test_torchmetrics_objects_keep_their_direction_and_are_refused_without_one():
    import torchmetrics

    assert not regressed(torchmetrics.MeanSquaredError()).higher_is_better
    assert regressed(torchmetrics.R2Score()).higher_is_better
    collection = torchmetrics.MetricCollection([torchmetrics.MeanAbsoluteError(), torchmetrics.R2Score()])
    assert not regressed(collection).higher_is_better
    assert regressed(collection, select="R2Score").higher_is_better
    assert not regressed(torchmetrics.functional.mean_squared_error).higher_is_better
    with pytest.raises(DataError, match="its higher_is_better is None"):
        regressed(torchmetrics.PearsonCorrCoef(num_outputs=4))
    assert regressed(torchmetrics.PearsonCorrCoef(num_outputs=4), higher_is_better=True).higher_is_better
    assert not regressed(torchmetrics.PearsonCorrCoef(num_outputs=4), higher_is_better=False).higher_is_better


@pytest.mark.parametrize(
    "metric",
    [nn.L1Loss(), nn.functional.mse_loss, partial(nn.functional.l1_loss, reduction="mean"), nn.CrossEntropyLoss()],
)
def test_a_loss_as_a_metric_is_better_when_lower(metric):
    assert not regressed(metric).higher_is_better


def test_a_function_of_the_users_is_better_when_higher():
    assert regressed(lambda o, t: 0.0).higher_is_better
    assert not regressed(lambda o, t: 0.0, higher_is_better=False).higher_is_better
