"""Calls of the model, the loss and the metric, with errors that say which of them does not fit the data."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fxsurgery.errors import DataError, DeviceError, TrainingError
from fxsurgery.inputs import Inputs
from fxsurgery.training.batches import describe, describe_inputs
from fxsurgery.training.task import Task

MISFITS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError)
_HINT = " (inputs in a dict are given by name; split= of the task says otherwise)"


def addressed(model: nn.Module, inputs: Inputs) -> Inputs:
    """The inputs as `forward` takes them: by name; in one dict where it has no such parameters, but takes one thing."""
    if inputs.args or not inputs.kwargs:
        return inputs
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    signature, whole = inspect.signature(inner.forward), dict(inputs.kwargs)
    if any(p.kind is p.VAR_KEYWORD or p.name in whole for p in signature.parameters.values()):
        return inputs
    try:
        signature.bind(whole)
    except TypeError:
        return inputs
    return Inputs((whole,))


def predict(model: nn.Module, inputs: Inputs) -> Any:  # noqa: ANN401
    """The model's output.

    Raises:
        DataError: the model cannot take these inputs.
        DeviceError: they need more memory than the device has.
    """
    given = addressed(model, inputs)
    with _blaming(f"the model cannot take inputs {describe_inputs(given)}{_HINT if inputs.kwargs else ''}"):
        return model(*given.args, **given.kwargs)


class ByName(dict[str, Any]):
    """A dict whose entries are attributes too: a captured model gives the fields of its dataclass in a dict."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name not in self:
            raise AttributeError(f"the output has no {name!r}; it has: {', '.join(map(str, self))}")
        return _readable(self[name])


def _readable(output: Any) -> Any:  # noqa: ANN401
    return ByName(output) if type(output) is dict else output


def loss_of(task: Task, output: Any, target: Any) -> Tensor:  # noqa: ANN401
    """The task's loss, a scalar.

    Raises:
        DataError: the loss cannot take output and target.
        DeviceError: they need more memory than the device has.
        TrainingError: it does not give a scalar tensor.
    """
    with _blaming(f"the loss cannot take output {describe(output)} and target {describe(target)}"):
        loss: object = task.loss(_readable(output), target)
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
        return float(task.metric(_readable(output), target))


@contextmanager
def _blaming(what: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise DeviceError(f"out of memory, use a smaller batch_size: {what}") from error
    except MISFITS as error:
        raise DataError(f"{what}: {error}") from error
