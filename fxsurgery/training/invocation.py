"""Call the model, the loss and the metric, with errors that name the one that does not fit the data."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from operator import add
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxsurgery.argument_names import entry, keyword, named
from fxsurgery.errors import DataError, DeviceError, DivergedError, TrainingError, reason_of
from fxsurgery.example_inputs import by_parameters, names_fault, renames, unknown_names
from fxsurgery.inputs import Inputs, tensors_in
from fxsurgery.training.accumulating import Accumulating
from fxsurgery.training.batches import describe, describe_inputs
from fxsurgery.training.classification import accuracy
from fxsurgery.training.task import Task

MISFITS = (RuntimeError, TypeError, ValueError, IndexError, KeyError, AttributeError, AssertionError)
ELEMENTWISE = (nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss)
ELEMENTWISE_FUNCTIONS = (functional.mse_loss, functional.l1_loss, functional.smooth_l1_loss, functional.huber_loss)
"""Losses that compare output and target elementwise, with broadcasting."""


def addressed(model: nn.Module, inputs: Inputs) -> Inputs:
    """Return the inputs as `forward` takes them: by name, or in one dict if it has a single parameter of another name.

    Raises:
        DataError: `forward` has no parameter for an entry.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    try:
        return by_parameters(inputs, inner.forward)
    except DataError:
        raise _misnamed(inputs, inner.forward) from None


def _hint(inputs: Inputs) -> str:
    how = "a dict are given by name" if inputs.kwargs else "a tuple are given by position"
    return f" (inputs in {how}; split= of the task says otherwise)"


def _misnamed(inputs: Inputs, forward: Callable[..., Any]) -> DataError:
    """Return the error for entries that the model does not take, with the dict that it takes."""
    old_names = {new: old for old, new in renames(inputs.kwargs, forward).items()}
    extra = unknown_names(inputs.kwargs, forward)
    kept = {name: name for name in inputs.kwargs if name not in extra} | old_names
    order = [name for name in inspect.signature(forward).parameters if name in kept]
    taken = ", ".join(f"{name!r}: batch[{kept[name]!r}]" for name in order)
    return DataError(
        f"the model cannot take inputs {describe_inputs(inputs)}{_hint(inputs)}: "
        f"{names_fault(inputs.kwargs, forward, 'the data')}. Or build the data with "
        f"Task.of(train, val, split=lambda batch: ({{{taken}}}, batch['labels'])), with the key of your target"
    )


def predict(model: nn.Module, inputs: Inputs) -> Any:  # noqa: ANN401
    """Return the model's output.

    Raises:
        DataError: the model does not accept the inputs; the message names entries of a dict without a parameter.
        DeviceError: out of memory.
    """
    given = addressed(model, inputs)
    try:
        return model(*given.args, **given.kwargs)
    except MISFITS as error:
        _blame(
            error,
            f"the model cannot take inputs {describe_inputs(given)}{_hint(given)}",
            "give inputs that its forward takes",
        )


class ByName(dict[str, Any]):
    """A dict with its entries as attributes, too: a captured model returns the fields of its dataclass in a dict."""

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name not in self:
            raise AttributeError(f"the output has no {name!r}; it has: {', '.join(map(str, self))}")
        return _readable(self[name])


def _readable(output: Any) -> Any:  # noqa: ANN401
    return ByName(output) if type(output) is dict else output


def loss_of(task: Task, output: Any, target: Any) -> Tensor:  # noqa: ANN401
    """Return the task's loss, a scalar: the sum of its terms if it has several.

    Raises:
        DataError: the loss does not accept output and target.
        DeviceError: out of memory.
        DivergedError: one of several terms is not finite while training.
        TrainingError: the loss does not return scalars.
    """
    loss = task.on("loss", _device_of(output))
    _refuse_broadcast(loss, "loss", output, target)
    try:
        given: object = loss(_readable(output), target)
    except MISFITS as error:
        _blame(
            error,
            f"the loss cannot take output {describe(output)} and target {describe(target)}",
            f"give targets or a {keyword('loss')} that fit",
        )
    terms = _terms(given)
    tensors = [term for term in terms.values() if isinstance(term, Tensor)]
    if not tensors or any(t.numel() != 1 or t.is_complex() for t in tensors):
        raise TrainingError(
            "the loss must give a scalar tensor, the mean over the batch, or several in a dict or a tuple, which are "
            f"summed; it gave {describe(given)}"
        )
    if _counts_nothing(task, tensors[0], target):
        # PyTorch's mean of nothing is NaN; this has a gradient of zeros.
        return reduce(add, [x.flatten()[:0].sum() for _, x in tensors_in(output) if x.is_floating_point()])
    total: Tensor = reduce(add, [_scalar(x) for x in terms.values()])  # type: ignore[assignment]
    if len(terms) > 1 and total.requires_grad and not math.isfinite(total.item()):
        _blame_terms(terms)
    return total


def _scalar(term: Tensor | float) -> Tensor | float:
    return term.reshape(()) if isinstance(term, Tensor) and term.dim() else term


def _counts_nothing(task: Task, loss: Tensor, target: object) -> bool:
    """Return whether a loss is NaN because it ignores every target."""
    if loss.is_meta or task.counting is None:
        return False
    return math.isnan(loss.item()) and task.counting.loss_weight(target) == 0


def _terms(loss: object) -> dict[str, Tensor | float]:
    """Return the terms of a loss by name; none if one of them is not a number."""
    found: dict[str, object] = {"loss": loss} if isinstance(loss, Tensor) else dict(_named(loss))
    numbers = {name: term for name, term in found.items() if isinstance(term, Tensor | int | float)}
    return numbers if len(numbers) == len(found) else {}


def _named(several: object) -> Iterator[tuple[str, object]]:
    if isinstance(several, Mapping):
        yield from ((str(name), value) for name, value in several.items())
    elif isinstance(several, tuple | list):
        names = getattr(several, "_fields", range(len(several)))
        yield from ((str(name), value) for name, value in zip(names, several, strict=True))


def _blame_terms(terms: Mapping[str, Tensor | float]) -> None:
    values = {name: x.item() if isinstance(x, Tensor) else x for name, x in terms.items()}
    if wrong := [name for name, value in values.items() if not math.isfinite(value)]:
        shown = ", ".join(f"{name}={value:.4g}" for name, value in values.items())
        raise DivergedError(
            f"of the loss {shown}, {' and '.join(map(repr, wrong))} is not finite; lower the learning rate, clip "
            f"the gradients with {entry('settings', 'gradient_clip', 1.0)}, or look for a division by 0 or a "
            "log of 0 in that term"
        )


def figures_of(task: Task, output: Any, target: Any, loss: float) -> dict[str, float]:  # noqa: ANN401
    """Return the values of a metric that is a mean over batches, by name; the loss if the task has no metric.

    Raises:
        DataError: the metric does not accept output and target, or does not return numbers.
        DeviceError: out of memory.
    """
    if task.metric is None:
        return {"loss": loss}
    metric = task.on("metric", _device_of(output))
    _refuse_broadcast(metric, task.metric_name, output, target)
    try:
        if metric is accuracy and task.counting is not None:
            return _numbers(accuracy(_readable(output), target, task.counting.ignore_index), task.metric_name)
        return _numbers(metric(_readable(output), target), task.metric_name)
    except MISFITS as error:
        _blame(error, _metric_misfit(task, output, target), f"give another {keyword('metric')}")


def update(meter: Accumulating, task: Task, output: Any, target: Any) -> None:  # noqa: ANN401
    """Add a batch to an accumulating metric.

    Raises:
        DataError: the metric does not accept output and target.
        DeviceError: out of memory.
    """
    try:
        meter.update(_readable(output), target)
    except MISFITS as error:
        _blame(error, _metric_misfit(task, output, target), f"give another {keyword('metric')}")


def compute(meter: Accumulating, task: Task) -> dict[str, float]:
    """Return the values of an accumulating metric, by name.

    Raises:
        DataError: the metric fails, or does not return numbers.
        DeviceError: out of memory.
    """
    try:
        return _numbers(meter.compute(), task.metric_name)
    except MISFITS as error:
        _blame(error, f"compute() of {task.metric_name} fails, or gives no number", f"give another {keyword('metric')}")


def _metric_misfit(task: Task, output: object, target: object) -> str:
    return f"{task.metric_name} cannot take output {describe(output)} and target {describe(target)}, or gives no number"


def _numbers(given: Any, name: str) -> dict[str, float]:  # noqa: ANN401
    """Return numbers by name. Entries of a dict with several numbers, such as one for each class, are dropped.

    Raises:
        ValueError: there is no number.
    """
    if not isinstance(given, Mapping):
        return {name: float(given)}
    found = {str(key): float(x) for key, x in given.items() if getattr(x, "ndim", 0) == 0 or math.prod(x.shape) == 1}
    if not found:
        raise ValueError(f"there is no single number in {describe(given)}")
    return found


def _device_of(output: object) -> torch.device:
    if isinstance(output, Tensor):
        return output.device
    return next((x.device for _, x in tensors_in(output)), torch.device("cpu"))


def _refuse_broadcast(function: object, what: str, output: object, target: object) -> None:
    """Raise an error if an elementwise loss would broadcast (batch, 1) against (batch,) to (batch, batch).

    PyTorch only warns, and the model would learn the mean of the targets.
    """
    if not (isinstance(function, ELEMENTWISE) or function in ELEMENTWISE_FUNCTIONS):
        return
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.shape == target.shape:
        return
    try:
        both: tuple[int, ...] = torch.broadcast_shapes(output.shape, target.shape)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return
    if math.prod(both) > max(output.numel(), target.numel()):
        raise DataError(
            f"the {what} would compare output {tuple(output.shape)} and target {tuple(target.shape)} as {tuple(both)}, "
            f"every entry with every other; give targets of shape {tuple(output.shape)}, such as y[:, None]"
        )


def _blame(error: Exception, what: str, remedy: str) -> NoReturn:
    """Raise a `SurgeryError` whose message begins with `what`, for an error that the user's code raised."""
    if isinstance(error, torch.OutOfMemoryError):
        raise DeviceError(f"out of memory, use a smaller {named('batch_size')}: {what}") from error
    raise DataError(f"{what}: {reason_of(error)}; {remedy}") from error
