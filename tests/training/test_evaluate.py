"""Scores, and that taking them changes nothing."""

from itertools import count, islice

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Sampler, TensorDataset

from fxsurgery.errors import DataError
from fxsurgery.inputs import Inputs
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


class Bag(nn.Module):
    """Flat ids and offsets, by position or in a tuple, to (batch, 4)."""

    def __init__(self):
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(50, 16, mode="mean"), nn.Linear(16, 4)

    def forward(self, text, offsets):
        return self.head(self.bag(text, offsets))


class Graphs(nn.Module):
    """Nodes and the graph of each to (graphs, 4)."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 4)

    def forward(self, nodes, graph):
        return self.head(torch.zeros(int(graph.max()) + 1, 3).index_add(0, graph, nodes))


class Reader(nn.Module):
    """(time, batch, 3) to (batch, 4)."""

    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.GRU(3, 8), nn.Linear(8, 4)

    def forward(self, steps):
        return self.head(self.cell(steps)[1][-1])


def flat(rows):
    lengths = torch.tensor([0] + [len(t) for t, _ in rows[:-1]])
    return torch.cat([t for t, _ in rows]), lengths.cumsum(0), torch.tensor([y for _, y in rows])


def graphs(rows):
    which = torch.cat([torch.full((len(t),), i) for i, (t, _) in enumerate(rows)])
    return torch.cat([t[:, None].float().expand(-1, 3) for t, _ in rows]), which, torch.tensor([y for _, y in rows])


def time_first(rows):
    length = max(len(t) for t, _ in rows)
    steps = [nn.functional.pad(t[:, None].float().expand(-1, 3), (0, 0, 0, length - len(t))) for t, _ in rows]
    return torch.stack(steps, 1), torch.tensor([y for _, y in rows])


def by_name(rows):
    steps, y = time_first(rows)
    return {"labels": y, "steps": steps}


def ragged():
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randint(0, 50, (1 + i % 16,), generator=generator), (i * i) % 4) for i in range(27)]
    return sorted(rows, key=lambda row: len(row[0]))


@pytest.mark.parametrize(
    ("model", "collate"),
    [(Bag(), flat), (Graphs(), graphs), (Reader(), time_first), (Reader(), by_name)],
    ids=["flat", "graphs", "time first", "by name"],
)
@pytest.mark.parametrize("size", [2, 4, 8])
def test_samples_weigh_alike_wherever_the_batch_is(model, collate, size):
    loader = DataLoader(ragged(), batch_size=size, collate_fn=collate)
    score = evaluate(model, Task(loader, loader))
    right, loss = 0, 0.0
    for batch in loader:
        *inputs, y = batch if isinstance(batch, tuple) else (batch["steps"], batch["labels"])
        with torch.no_grad():
            output = model(*inputs)
        right += int((output.argmax(1) == y).sum())
        loss += float(nn.functional.cross_entropy(output, y, reduction="sum"))
    assert score.samples == 27
    assert score.metric == pytest.approx(right / 27, abs=1e-9)
    assert score.loss == pytest.approx(loss / 27, rel=1e-5)


@pytest.mark.parametrize("statement", [(None, 0), {0: None, 1: 0}, {1: 0}])
def test_the_batch_may_be_stated(statement):
    def odd(output, target):
        return output.mean()

    loader = DataLoader(ragged(), batch_size=8, collate_fn=flat)
    task = Task(loader, loader, loss=odd, metric=lambda output, target: float(len(output)), batch_dims=statement)
    assert task.samples(next(iter(loader))) == 8
    assert evaluate(Bag(), task).metric == pytest.approx((3 * 64 + 9) / 27)


def test_a_split_that_gives_inputs_with_their_batch_is_followed():
    def split(batch):
        return Inputs((batch[0],), batch_dims=(1,)), None

    loader = DataLoader([(torch.randn(5, n, 3),) for n in (2, 4)], batch_size=None)
    task = Task(loader, loader, loss=lambda output, _: output.mean(), split=split)
    assert evaluate(nn.Linear(3, 1), task).samples == 6


class Endless(IterableDataset):
    """Rows without end, and of a length, where one is given, that says otherwise."""

    def __iter__(self):
        return ((X[i % 10], Y[i % 10]) for i in count())


class EndlessOfALength(Endless):
    def __len__(self):
        return 8


class Again(Sampler):
    """Indices without end."""

    def __iter__(self):
        return (i % 10 for i in count())


@pytest.mark.filterwarnings("ignore:Length of IterableDataset")
@pytest.mark.parametrize(
    "loader",
    [
        DataLoader(Endless(), batch_size=4),
        DataLoader(EndlessOfALength(), batch_size=4),
        DataLoader(TensorDataset(X, Y), batch_size=4, sampler=Again()),
    ],
    ids=["stream", "of a length", "sampler"],
)
def test_validation_data_without_an_end_are_refused(loader):
    with pytest.raises(DataError, match=r"no end after 1,000 batches.*val_batches=100"):
        evaluate(nn.Linear(4, 3), Task(loader, loader))


def test_so_many_batches_of_a_stream_may_be_asked_for():
    loader = DataLoader(Endless(), batch_size=4)
    score = evaluate(nn.Linear(4, 3), Task(loader, loader, val_batches=1100))
    assert score.samples == 4400
    with pytest.raises(DataError, match="val_batches=0"):
        Task(loader, loader, val_batches=0)


def test_a_stream_that_ends_is_scored_whole():
    class Ending(IterableDataset):
        def __iter__(self):
            return islice(iter(Endless()), 30)

    assert evaluate(nn.Linear(4, 3), Task.of((X, Y), Ending(), batch_size=4)).samples == 30


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
