"""Score a model: metric and loss over a data set, weighted by samples."""

from dataclasses import dataclass

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from fxsurgery.errors import DataError
from fxsurgery.training.loop import device_of, forward, loss_of
from fxsurgery.training.task import Batches, Task


@dataclass(frozen=True)
class Score:
    """How a model does on a data set."""

    metric: float
    """The task's metric; the loss where the task has none."""
    loss: float
    samples: int


def evaluate(model: nn.Module, task: Task, data: Batches | None = None, *, device: str | None = None) -> Score:
    """The score of `model`, in eval mode, which it was left in or is put back out of.

    Args:
        model: it is not changed.
        task: loss and metric.
        data: the task's validation data unless given.
        device: where the model is unless given; a model elsewhere is moved there.

    Raises:
        DataError: there is no sample, or a batch does not fit.
    """
    flags = {module: module.training for module in model.modules()}
    where = device_of(model, device)
    totals, samples = [0.0, 0.0], 0
    model.eval().to(where)
    try:
        with torch.no_grad():
            for batch in task.val_data if data is None else data:
                inputs, target = task.split(send_to_device(batch, where))
                output = forward(model, inputs)
                loss = float(loss_of(task, output, target))
                size = len(inputs[0]) if isinstance(inputs[0], Tensor) else 1
                totals[0] += size * (loss if task.metric is None else float(task.metric(output, target)))
                totals[1] += size * loss
                samples += size
    finally:
        for module, flag in flags.items():
            module.training = flag
    if not samples:
        raise DataError("there is no sample to score the model on")
    return Score(totals[0] / samples, totals[1] / samples, samples)
