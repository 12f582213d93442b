"""What loss and metric come to over a whole split, batch by batch."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from fxsurgery.training.calls import compute, figures_of, loss_of, update
from fxsurgery.training.task import Task


class Meter:
    """Loss and metric of a task, of what has been added.

    The loss is a mean over the samples, and so is a metric that is a function. One that accumulates is a copy of
    the task's, so that an evaluation starts from nothing and the user's own object stays as it is.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.samples = 0
        self._accumulating = task.fresh_metric(device)
        self._loss = _Mean()
        self._means: Mapping[str, _Mean] = defaultdict(_Mean)

    def add(self, output: Any, target: Any, samples: int) -> float:  # noqa: ANN401
        """Take a batch of so many samples into account; its loss.

        Raises:
            DataError: loss or metric cannot take it.
            DeviceError: it needs more memory than the device has.
            TrainingError: the loss gives no scalars.
        """
        loss = loss_of(self.task, output, target).item()
        self.samples += samples
        self._loss.add(loss, samples)
        if self._accumulating is not None:
            update(self._accumulating, self.task, output, target)
            return loss
        for name, value in figures_of(self.task, output, target, loss).items():
            self._means[name].add(value, samples)
        return loss

    @property
    def loss(self) -> float:
        """Mean over the samples."""
        return self._loss.value

    def figures(self) -> dict[str, float]:
        """Every number of the metric, by name.

        Raises:
            DataError: the metric fails, or gives no numbers.
            DeviceError: it needs more memory than the device has.
        """
        if self._accumulating is not None:
            return compute(self._accumulating, self.task)
        return {name: mean.value for name, mean in self._means.items()}


class _Mean:
    """A mean over samples, of means over batches."""

    def __init__(self) -> None:
        self.total, self.samples = 0.0, 0

    def add(self, value: float, samples: int) -> None:
        self.total += value * samples
        self.samples += samples

    @property
    def value(self) -> float:
        return self.total / max(self.samples, 1)
