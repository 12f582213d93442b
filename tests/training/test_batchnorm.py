"""Recalibrated norms against the statistics of the data."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from fxsurgery.errors import DataError
from fxsurgery.training import Task, recalibrate
from nonempty import nonempty

X = 3 + 2 * torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
Y = torch.zeros(30, dtype=torch.long)


def model():
    net = nn.Sequential(nn.BatchNorm1d(4, momentum=0.3), nn.Dropout(0.9), nn.BatchNorm1d(4)).eval()
    net[0].running_mean.fill_(99)
    net[0].num_batches_tracked.fill_(7)
    return net


def test_one_batch_gives_the_statistics_of_the_data():
    net = model()
    assert recalibrate(net, Task.of((X, Y), (X, Y), batch_size=30)) == 2
    torch.testing.assert_close(net[0].running_mean, X.mean(0))
    torch.testing.assert_close(net[0].running_var, X.var(0))
    normed = (X - X.mean(0)) / (X.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(net[2].running_var, normed.var(0))


def test_batches_are_averaged():
    net = model()
    recalibrate(net, Task.of((X, Y), (X, Y), batch_size=10))
    torch.testing.assert_close(net[0].running_mean, X.mean(0))


def test_no_more_batches_than_asked_for():
    net, task = model(), Task.of((X, Y), (X, Y), batch_size=10)
    recalibrate(net, task, batches=1)
    torch.testing.assert_close(net[0].running_mean, next(iter(task.train_data))[0].mean(0))


def test_everything_else_stays():
    net = model()
    weights = [p.clone() for p in net.parameters()]
    recalibrate(net, Task.of((X, Y), (X, Y)))
    assert all(torch.equal(a, b) for a, b in zip(nonempty(weights), net.parameters(), strict=True))
    assert net[0].momentum == 0.3
    assert not any(m.training for m in net.modules())


def test_without_norms_no_data_are_read():
    class Unread(Dataset):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> object:
            raise AssertionError("data were read")

    loader = DataLoader(Unread())
    assert recalibrate(nn.Linear(4, 1), Task(loader, loader)) == 0
    with pytest.raises(AssertionError, match="data were read"):
        recalibrate(model(), Task(loader, loader))


def test_statistics_that_come_out_not_finite_are_an_error_that_names_the_norm():
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(0))
    x[3, 1] = torch.nan
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    task = Task.of((x, torch.arange(16) % 3), (x, torch.arange(16) % 3))
    with pytest.raises(
        DataError, match=r"1\.running_mean, 1\.running_var are not finite, since of train_data entry 0\.0 has 1 NaN"
    ):
        recalibrate(model, task)
