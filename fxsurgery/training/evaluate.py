"""Score a model on data without changing it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from fxsurgery.argument_names import named
from fxsurgery.errors import DataError, DeviceError
from fxsurgery.option_types import checked
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training.batches import Loader, ending, has_length, set_epoch
from fxsurgery.training.device import Device, on_device
from fxsurgery.training.finite import wrong_values
from fxsurgery.training.invocation import predict
from fxsurgery.training.meter import Meter
from fxsurgery.training.model_state import borrowed
from fxsurgery.training.random_state import repeatable
from fxsurgery.training.task import Task
from fxsurgery.turns import TURNS


@dataclass(frozen=True)
class Score:
    """Means over the samples, or in classification over the targets that count; a metric may accumulate instead."""

    metric: float
    """Value of the task's metric, of several the selected one; equal to `loss` if the task has no metric."""
    loss: float
    samples: int
    figures: Mapping[str, float] = field(default_factory=dict)
    """Every value of the metric, by name."""


@checked(DataError, device=DeviceError)
@plain_surroundings()
def evaluate(model: nn.Module, task: Task, data: Loader | None = None, *, device: Device = None) -> Score:
    """Score `model` in eval mode on `data`, the validation data by default.

    Scoring is in full precision, whatever the precision of the training. Each process of a distributed run scores all
    of the data, so that they agree. Train flags and random states, also those of a user's loader, are restored.

    Args:
        model: the model.
        task: loss, metric and how to split batches.
        data: a loader.
        device: device to score on; `None` is the device of the model.

    Raises:
        DataError: there is no batch, or no end of them; or a batch does not fit the model, the loss or the metric, or
            holds values that are not finite and make the loss so.
        TrainingError: the loss is not a scalar.
        DeviceError: there is no such device, or it is out of memory.
    """
    loader = task.val_data if data is None else data
    with borrowed(model, device) as there, repeatable(loader, 0, there) as source, torch.no_grad():
        model.eval()
        set_epoch(source, 0)
        most = task.val_batches if loader is task.val_data else None
        return _score(model, task, ending(source, most, "the data to evaluate on"), there, _named(task, data))


def _named(task: Task, data: Loader | None) -> str:
    """Return the name of the data in messages."""
    known = {"val_data": task.val_data, "test_data": task.test_data, "train_data": task.train_data}
    return "val_data" if data is None else next((name for name, own in known.items() if own is data), "the data")


def require_ends(task: Task) -> None:
    """Read validation and test data without a length to their end.

    Raises:
        DataError: they have no end.
    """
    for name in ("val_data", "test_data"):
        loader = getattr(task, name)
        if loader is None or has_length(loader) or (name == "val_data" and task.val_batches is not None):
            continue
        with repeatable(loader, 0, torch.device("cpu")) as source:
            for _ in ending(source, None, name):
                pass


def _score(model: nn.Module, task: Task, batches: Iterable[Any], device: torch.device, name: str) -> Score:
    meter = Meter(task, device)
    for number, batch in enumerate(batches):
        TURNS.give_way()
        inputs, target = task.take_apart(on_device(batch, device))
        output = predict(model, inputs)
        loss = meter.add(output, target, task.count(inputs, target, output))
        if not math.isfinite(loss) and (wrong := wrong_values(batch)):
            raise DataError(f"{named(name)}: the loss of batch {number} is {loss}, since {wrong}; clean the data")
    if not meter.samples:
        raise DataError("`batches` to evaluate on is empty: it gives no batch; give at least one")
    figures = meter.figures()
    return Score(task.selected(figures), meter.loss, meter.samples, figures)
