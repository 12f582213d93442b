"""Score a model on data, leaving it as it is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from fxsurgery.errors import DataError
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training.batches import Loader, set_epoch
from fxsurgery.training.borrowing import borrowed
from fxsurgery.training.calls import predict
from fxsurgery.training.device import Device
from fxsurgery.training.meter import Meter
from fxsurgery.training.randomness import repeatable
from fxsurgery.training.task import Task
from fxsurgery.turns import TURNS


@dataclass(frozen=True)
class Score:
    """Means over the samples; a metric that accumulates is of all of them together."""

    metric: float
    """The task's metric, of several numbers the selected one; equal to `loss` where it has none."""
    loss: float
    samples: int
    figures: Mapping[str, float] = field(default_factory=dict)
    """Every number that the metric gives, by name."""


@plain_surroundings()
def evaluate(model: nn.Module, task: Task, data: Loader | None = None, *, device: Device = None) -> Score:
    """Score `model` in eval mode on `data`, the validation data unless said.

    In full precision, whatever it was trained in. Each process of a distributed run scores all of the data, so that
    they agree. Train flags and random states, those of a user's loader too, are afterwards as they were.

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
    with borrowed(model, device) as there, repeatable(loader, 0, there) as source, torch.no_grad():
        model.eval()
        set_epoch(source, 0)
        return _score(model, task, source, there)


def _score(model: nn.Module, task: Task, loader: Iterable[Any], device: torch.device) -> Score:
    meter = Meter(task, device)
    for batch in loader:
        TURNS.give_way()
        inputs, target = task.take_apart(send_to_device(batch, device))
        meter.add(predict(model, inputs), target, 1 if inputs.batch is None else inputs.batch)
    if not meter.samples:
        raise DataError("the data to evaluate on is empty: it gives no batch")
    figures = meter.figures()
    return Score(task.selected(figures), meter.loss, meter.samples, figures)
