"""What the default loss and metric count."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from fxsurgery.errors import DataError
from fxsurgery.training import Recipe, Task, constant, evaluate, fit, sgd
from fxsurgery.training.classification import Counting, accuracy, counting_of, cross_entropy
from nonempty import nonempty

GENERATOR = torch.Generator().manual_seed(0)
CLASSES = 5


class Echo(nn.Module):
    """(batch, length) ids to (batch, classes, length): predicts its own input."""

    def __init__(self, right: float = 1.0) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(CLASSES, CLASSES), nn.Conv1d(CLASSES, CLASSES, 1)
        with torch.no_grad():
            self.embed.weight.copy_(torch.eye(CLASSES) * right)
            self.head.weight.copy_(torch.eye(CLASSES)[..., None])
            self.head.bias.zero_()

    def forward(self, ids):
        return self.head(self.embed(ids).transpose(1, 2))


def tagged(ignored: int, samples: int = 32, length: int = 10):
    ids = torch.randint(0, CLASSES, (samples, length), generator=GENERATOR)
    tags = ids.clone()
    tags[:, 4:] = ignored
    return ids, tags


def test_targets_that_are_ignored_are_not_wrong():
    data = tagged(-100)
    score = evaluate(Echo().eval(), Task.of(data, data))
    assert (score.metric, score.samples) == (1.0, 32)


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(ignore_index=-1), partial(functional.cross_entropy, ignore_index=-1), nn.CrossEntropyLoss(
        ignore_index=-1, weight=torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0]))],
    ids=["module", "function", "class weights"],
)  # fmt: skip
def test_accuracy_leaves_out_what_a_loss_of_ones_own_does(loss):
    data = tagged(-1)
    assert evaluate(Echo().eval(), Task.of(data, data, loss=loss, metric=accuracy)).metric == 1.0


def test_scores_are_means_over_the_targets_that_count_in_all_batches():
    ids = torch.randint(0, CLASSES, (30, 10), generator=GENERATOR)
    tags = torch.randint(0, CLASSES, (30, 10), generator=GENERATOR)
    keep = torch.rand(30, 10, generator=GENERATOR) < torch.linspace(0, 1, 30)[:, None]
    tags[~keep] = -100
    tags[8:16] = -100  # a whole batch
    model = Echo(2.0).eval()
    score = evaluate(model, Task.of((ids, tags), (ids, tags), batch_size=8))
    with torch.no_grad():
        output = model(ids)
    counted = tags != -100
    assert score.loss == pytest.approx(float(functional.cross_entropy(output, tags)), rel=1e-5)
    assert score.metric == pytest.approx(float((output.argmax(1) == tags)[counted].double().mean()))
    assert score.samples == 30


@pytest.mark.parametrize("metric", [None, accuracy])
def test_class_weights_weigh_the_loss_of_each_batch_and_not_the_accuracy(metric):
    weight = torch.tensor([1.0, 8.0, 0.25])
    loss = nn.CrossEntropyLoss(weight=weight, ignore_index=2)
    x, y = torch.randn(20, 4, generator=GENERATOR), torch.arange(20) % 3
    model = nn.Linear(4, 3)
    score = evaluate(model, Task.of((x, y), (x, y), batch_size=7, loss=loss, metric=metric))
    with torch.no_grad():
        output = model(x)
    assert score.loss == pytest.approx(float(loss(output, y)), rel=1e-6)
    wanted = float(loss(output, y)) if metric is None else float(accuracy(output, y, 2))
    assert score.metric == pytest.approx(wanted, rel=1e-6)


def test_batches_of_other_lengths_weigh_by_their_targets():
    rows = [(torch.randint(0, CLASSES, (n,), generator=GENERATOR),) for n in (2, 2, 9, 9, 9, 4)]
    rows = [(ids, (ids + (torch.arange(len(ids)) % 2)) % CLASSES) for (ids,) in rows]
    loader = DataLoader(rows, batch_size=1)
    model = Echo().eval()
    with torch.no_grad():
        outputs = [model(ids[None]) for ids, _ in rows]
    right = sum(int((o.argmax(1)[0] == tags).sum()) for o, (_, tags) in zip(outputs, rows, strict=True))
    summed = sum(
        float(functional.cross_entropy(o, t[None], reduction="sum")) for o, (_, t) in zip(outputs, rows, strict=True)
    )
    score = evaluate(model, Task(loader, loader))
    assert score.metric == pytest.approx(right / 35)
    assert score.loss == pytest.approx(summed / 35)


def test_soft_targets_all_count():
    x = torch.randn(10, 4, generator=GENERATOR)
    y = torch.rand(10, 3, generator=GENERATOR).softmax(1)
    model = nn.Linear(4, 3)
    score = evaluate(model, Task.of((x, y), (x, y), batch_size=4))
    with torch.no_grad():
        output = model(x)
    assert score.loss == pytest.approx(float(functional.cross_entropy(output, y)))
    assert score.metric == pytest.approx(float((output.argmax(1) == y.argmax(1)).double().mean()))


def test_data_of_which_nothing_counts_are_refused():
    ids, tags = tagged(-100)
    with pytest.raises(DataError, match=r"no target of the 32 samples counts.*ignore_index"):
        evaluate(Echo(), Task.of((ids, tags), (ids, torch.full_like(tags, -100))))


@pytest.mark.parametrize("loss", [None, nn.CrossEntropyLoss(ignore_index=-100)], ids=["default", "module"])
def test_training_goes_on_over_a_batch_of_which_nothing_counts(loss):
    ids, tags = tagged(-100)
    tags[:16] = -100
    loader = DataLoader(list(zip(ids, tags, strict=True)), batch_size=8)
    task, model = Task.of(loader, loader, loss=loss), Echo()
    before = model.head.bias.clone()
    fit(model, task, Recipe(steps=4, optimizer=sgd(0.1), schedule=constant(), validations=0), device="cpu")
    assert all(p.isfinite().all() for p in nonempty(model.parameters()))
    assert not torch.equal(model.head.bias, before)


@pytest.mark.parametrize(
    ("loss", "found"),
    [
        (cross_entropy, Counting()),
        (functional.cross_entropy, Counting()),
        (nn.NLLLoss(ignore_index=3), Counting(3)),
        (partial(partial(functional.nll_loss, ignore_index=1), ignore_index=4), Counting(4)),
        (nn.CrossEntropyLoss(reduction="sum"), None),
        (nn.MSELoss(), None),
        (type("Focal", (nn.Module,), {"ignore_index": 7})(), Counting(7)),
        (lambda output, target: output.mean(), None),
    ],
)
def test_what_a_loss_counts(loss, found):
    assert counting_of(loss) == found


def test_accuracy_does_not_broadcast():
    with pytest.raises(ValueError, match=r"a target for each of \(4,\), not \(4, 1\)"):
        accuracy(torch.randn(4, 3), torch.zeros(4, 1, dtype=torch.long))
