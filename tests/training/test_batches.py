"""Tensors are read as `DataLoader` would read them, and batches are moved with what they hold."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from fxsurgery.training import Task
from fxsurgery.training.array_loader import ArrayLoader
from fxsurgery.training.batches import loader_of
from fxsurgery.training.device import on_device
from nonempty import nonempty

N = 11
X, Y = torch.arange(N * 3.0).view(N, 3), torch.arange(N)
DATA = {
    "tuple": (X, Y),
    "dict of inputs": ({"a": X, "b": X + 1}, Y),
    "dict": {"a": X, "labels": Y},
    "numpy": (np.arange(N * 2.0).reshape(N, 2), np.arange(N)),
}


def same(a: object, b: object) -> bool:
    leaves = [pytree.tree_flatten(x) for x in (a, b)]
    return leaves[0][1] == leaves[1][1] and all(map(torch.equal, leaves[0][0], leaves[1][0]))


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_tensors_are_read_as_a_data_loader_reads_them_and_draw_as_much_at_random(data, seed: int | None):
    ours = loader_of(data, 4, seed, "train_data")
    assert type(ours) is ArrayLoader
    theirs = DataLoader(ours.dataset, batch_sampler=ours.batch_sampler, collate_fn=lambda batch: batch)
    states, batches = list[Tensor](), list[list]()
    for loader in (ours, theirs):
        torch.default_generator.manual_seed(7)
        batches.append(list(loader))
        states.append(torch.get_rng_state())
    assert len(batches[0]) == len(batches[1]) == 3
    assert all(same(a, b) for a, b in nonempty(list(zip(*batches, strict=True))))
    assert torch.equal(*states)


@pytest.mark.parametrize("data", DATA.values(), ids=DATA)
def test_rows_that_are_counted_are_the_samples(data):
    task = Task.of(data, data, batch_size=4)
    count = task.counter(task.train_data)
    assert count != task.samples
    assert [count(batch) for batch in nonempty(task.train_data)] == [task.samples(batch) for batch in task.train_data]


def test_samples_are_counted_by_the_task_where_rows_may_be_something_else():
    split = Task.of((X, Y), (X, Y), split=lambda batch: (batch[0][None], batch[1]))
    stated = Task.of((X, Y), (X, Y), batch_dims=0)
    for task in (split, stated):
        assert task.counter(task.train_data) == task.samples
    loader = DataLoader(list(zip(X, Y, strict=True)), batch_size=4)
    own = Task.of(loader, loader)
    assert own.counter(own.train_data) == own.samples


class Moved:
    """Whatever has a `to`, as the batches of tokenizers have."""

    device = None

    def to(self, device: torch.device) -> "Moved":
        self.device = device
        return self


Pair = namedtuple("Pair", "x y")  # noqa: PYI024 -- as a user's


def test_a_batch_of_any_structure_is_moved_whole():
    meta = torch.device("meta")
    batch = {"pair": Pair(X, [Y, "text"]), "own": Moved(), "none": None}
    found = on_device(batch, meta)
    assert type(found["pair"]) is Pair
    assert found["pair"].x.is_meta
    assert found["pair"].y[0].is_meta
    assert found["pair"].y[1] == "text"
    assert found["own"].device == meta
    assert found["none"] is None
    assert not batch["pair"].x.is_meta


def test_what_is_there_already_is_not_copied():
    x, y = on_device((X, Y), torch.device("cpu"))
    assert x is X
    assert y is Y
