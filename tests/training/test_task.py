"""What a task takes, and what it refuses."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fxsurgery.errors import DataError
from fxsurgery.training import Task, steps_for
from fxsurgery.training.batches import set_epoch


def arrays(samples=10):
    x = torch.arange(samples * 3, dtype=torch.float32).reshape(samples, 3)
    return x, torch.arange(samples) % 2


def order(task, epoch):
    set_epoch(task.train_data, epoch)
    return torch.cat([x[:, 0] for x, _ in task.train_data]).tolist()


def test_shuffle_depends_on_seed_and_epoch_alone():
    task, again = (Task.of(arrays(), arrays(), batch_size=4, seed=3) for _ in range(2))
    first = order(task, 0)
    assert sorted(first) == arrays()[0][:, 0].tolist()
    assert order(task, 1) != first
    assert order(again, 1) == order(task, 1)
    assert order(task, 0) == first
    assert order(Task.of(arrays(), arrays(), batch_size=4, seed=4), 0) != first


def test_validation_data_keep_their_order():
    task = Task.of(arrays(), arrays(), batch_size=4)
    assert torch.equal(torch.cat([x for x, _ in task.val_data]), arrays()[0])


@pytest.mark.parametrize(
    "data",
    [
        arrays(),
        tuple(t.numpy() for t in arrays()),
        TensorDataset(*arrays()),
        DataLoader(TensorDataset(*arrays()), batch_size=4),
    ],
    ids=["tensors", "arrays", "dataset", "loader"],
)
def test_takes_tensors_arrays_datasets_and_loaders(data):
    task = Task.of(data, data, test_data=data, batch_size=4)
    assert [len(y) for _, y in task.val_data] == [4, 4, 2]
    assert task.example_inputs()[0].shape == (2, 3)
    assert len(task.test_data) == 3


def test_numpy_doubles_and_short_integers_become_what_torch_expects():
    task = Task.of((np.zeros((4, 3)), np.zeros(4, np.int32)), arrays())
    x, y = next(iter(task.train_data))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_example_inputs_span_batches_of_one():
    loader = DataLoader(TensorDataset(*arrays()), batch_size=1)
    assert Task(loader, loader).example_inputs(3)[0].shape == (3, 3)


def test_metric_is_accuracy_for_the_default_loss_and_else_the_loss():
    plain = Task.of(arrays(), arrays())
    assert (plain.metric_name, plain.higher_is_better) == ("accuracy", True)
    regression = Task.of(arrays(), arrays(), loss=nn.MSELoss())
    assert (regression.metric_name, regression.higher_is_better, regression.metric) == ("loss", False, None)

    def f1(output, target):
        return 0.5

    assert Task.of(arrays(), arrays(), metric=f1).metric_name == "f1"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (None, "no train_data"),
        ((torch.zeros(0, 3), torch.zeros(0)), "train_data has no samples"),
        ((torch.zeros(3, 3), torch.zeros(2)), "different numbers of samples"),
        ((torch.zeros(3, 3),), "inputs and a target"),
        ([(torch.zeros(3, 3), torch.zeros(3))] * 2, "wrap a list of batches"),
        (7, "must be a DataLoader, a Dataset, or a tuple"),
    ],
)
def test_refuses_data_that_it_cannot_use(train, message):
    with pytest.raises(DataError, match=message):
        Task.of(train, arrays())


def test_batch_that_cannot_be_split_says_how_to():
    loader = DataLoader([{"image": torch.zeros(3), "label": 1}] * 4, batch_size=2)
    with pytest.raises(DataError, match=r"dict\(image=\(2, 3\) float32, label=\(2,\) int64\).*give split="):
        Task.of(loader, loader).example_inputs()


def test_split_that_fails_is_told_with_the_batch():
    task = Task.of(arrays(), arrays(), split=lambda batch: batch["x"])
    with pytest.raises(DataError, match=r"split must turn a batch into \(inputs, target\); on tuple"):
        task.example_inputs()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(zip(*arrays(), strict=True))


def test_steps_are_bounded_both_ways():
    task = Task.of(arrays(), arrays(), batch_size=1)
    assert steps_for(task, 3, min_steps=1) == 30
    assert steps_for(task, 3, min_steps=50) == 50
    assert steps_for(task, 3, max_steps=20, min_steps=1) == 20
    assert steps_for(task, 0) == 0


def test_steps_of_data_without_a_length_are_counted():
    assert steps_for(Task.of(Stream(), arrays(), batch_size=4), 2, min_steps=1) == 6
