"""Calls of the model, the loss and the metric, with errors that say which of them does not fit the data."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxsurgery.errors import DataError, DeviceError, TrainingError
from fxsurgery.training.batches import describe
from fxsurgery.training.task import Task

MISFITS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)


def predict(model: nn.Module, inputs: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """The model's output.

    Raises:
        DataError: the model cannot take these inputs.
        DeviceError: they need more memory than the device has.
    """
    with _blaming(f"the model cannot take inputs {describe(inputs)}"):
        return model(*inputs)


def loss_of(task: Task, output: Any, target: Any) -> Tensor:  # noqa: ANN401
    """The task's loss, a scalar.

    Raises:
        DataError: the loss cannot take output and target.
        DeviceError: they need more memory than the device has.
        TrainingError: it does not give a scalar tensor.
    """
    with _blaming(f"the loss cannot take output {describe(output)} and target {describe(target)}"):
        loss: object = task.loss(output, target)
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.reshape(())
    raise TrainingError(f"the loss must give a scalar tensor, the mean over the batch; it gave {describe(loss)}")


def metric_of(task: Task, output: Any, target: Any, loss: float) -> float:  # noqa: ANN401
    """The task's metric; the loss where it has none.

    Raises:
        DataError: the metric cannot take output and target, or does not give a number.
        DeviceError: they need more memory than the device has.
    """
    if task.metric is None:
        return loss
    with _blaming(
        f"{task.metric_name} cannot take output {describe(output)} and target {describe(target)}, or gives no number"
    ):
        return float(task.metric(output, target))


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"out of memory, use a smaller batch_size: {what}") from error
    except MISFITS as error:
        raise DataError(f"{what}: {error}") from error
