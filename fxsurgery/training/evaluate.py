"""Score a model on data, leaving it as it is."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from fxsurgery.seeding import seeded
from fxsurgery.training.batches import Loader, count, samples, set_epoch
from fxsurgery.training.borrowing import borrowed
from fxsurgery.training.calls import loss_of, metric_of, predict
from fxsurgery.training.device import Device
from fxsurgery.training.task import Task


@dataclass(frozen=True)
class Score:
    """Means over the samples."""

    metric: float
    """The task's metric; equal to `loss` where it has none."""
    loss: float
    samples: int


def evaluate(model: nn.Module, task: Task, data: Loader | None = None, *, device: Device = None) -> Score:
    """Score `model` in eval mode on `data`, the validation data unless said.

    Each process of a distributed run scores all of the data, so that they agree. Train flags and the
    process's random states are afterwards as they were.

    Args:
        model: what is scored.
        task: the loss, the metric and the way to take batches apart.
        data: a loader.
        device: where; `None` is where the model is.

    Raises:
        DataError: there is no batch, or it does not fit the model, the loss or the metric.
        TrainingError: the loss is not a scalar.
        DeviceError: there is no such device, or it is out of memory.
    """
    loader = task.val_data if data is None else data
    count(loader, "the data to evaluate on")
    with borrowed(model, device) as there, seeded(0, there), torch.no_grad():
        model.eval()
        set_epoch(loader, 0)
        return _mean(_scores(model, task, loader, there))


def _scores(model: nn.Module, task: Task, loader: Iterable[Any], device: torch.device) -> Iterable[Score]:
    for batch in loader:
        inputs, target = task.take_apart(send_to_device(batch, device))
        output = predict(model, inputs)
        loss = loss_of(task, output, target).item()
        yield Score(metric_of(task, output, target, loss), loss, samples(batch))


def _mean(scores: Iterable[Score]) -> Score:
    metric = loss = 0.0
    total = 0
    for score in scores:
        metric += score.metric * score.samples
        loss += score.loss * score.samples
        total += score.samples
    return Score(metric / max(total, 1), loss / max(total, 1), total)
