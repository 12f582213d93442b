"""Accumulate loss and metric over a whole split, batch by batch, as means of what counts in it."""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch

from fxsurgery.errors import DataError
from fxsurgery.training.classification import Counting, accuracy
from fxsurgery.training.invocation import compute, figures_of, loss_of, update
from fxsurgery.training.task import Task


class Meter:
    """Loss and metric of a task over the batches that were added.

    The loss is a mean over the samples, and so is a metric that is a function; in classification both are means over
    the targets that count. A metric that accumulates is a reset copy of the task's, so the user's object is unchanged.
    """

    def __init__(self, task: Task, device: torch.device) -> None:
        self.task = task
        self.samples = 0
        self._accumulating = task.fresh_metric(device)
        self._loss = _Mean()
        self._means: Mapping[str, _Mean] = defaultdict(_Mean)
        self._counting = task.counting

    def add(self, output: Any, target: Any, samples: int) -> float:  # noqa: ANN401
        """Add a batch of `samples` samples, and return its loss.

        Raises:
            DataError: the loss or the metric does not accept the batch.
            DeviceError: out of memory.
            TrainingError: the loss does not return scalars.
        """
        loss = loss_of(self.task, output, target).item()
        self.samples += samples
        counted, weight = self._weights(target, samples)
        self._loss.add(loss, weight)
        if self._accumulating is not None:
            update(self._accumulating, self.task, output, target)
            return loss
        if self.task.metric is not None:
            weight = counted if self.task.metric is accuracy else samples
        for name, value in figures_of(self.task, output, target, loss).items():
            self._means[name].add(value, weight)
        return loss

    def _weights(self, target: Any, samples: int) -> tuple[float, float]:  # noqa: ANN401
        """Return the number of targets that count and the weight of the loss; the samples if it has neither."""
        counting = self._counting or Counting()
        targets = counting.targets(target) if self.task.metric is accuracy or self._counting else None
        weight = None if self._counting is None else counting.loss_weight(target)
        return (samples if targets is None else targets), (samples if weight is None else weight)

    @property
    def loss(self) -> float:
        """Mean loss over what counts; 0 without samples.

        Raises:
            DataError: there are samples, but no target of them counts.
        """
        if not self.samples:
            return 0.0
        if not self._loss.weight:
            raise DataError(
                f"no target of the {self.samples} samples counts: the loss leaves out those equal to its "
                "ignore_index; give data with other targets"
            )
        return self._loss.value

    def figures(self) -> dict[str, float]:
        """Return every value of the metric, by name.

        Raises:
            DataError: the metric fails, or does not return numbers.
            DeviceError: out of memory.
        """
        if self._accumulating is not None:
            return compute(self._accumulating, self.task)
        return {name: mean.value for name, mean in self._means.items()}


class _Mean:
    """Weighted mean of means over batches."""

    def __init__(self) -> None:
        self.total, self.weight = 0.0, 0.0

    def add(self, value: float, weight: float) -> None:
        if weight:  # else the mean of a batch is that of nothing, NaN
            self.total += value * weight
            self.weight += weight

    @property
    def value(self) -> float:
        return self.total / self.weight if self.weight else math.nan
