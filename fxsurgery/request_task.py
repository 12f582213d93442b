"""The task of a request: what its data, loss and metric make, checked before anything is captured."""

from dataclasses import replace

from fxsurgery.argument_names import assigned, named, usage
from fxsurgery.batch_layout import by_position, statement_of
from fxsurgery.errors import DataError
from fxsurgery.program import Program
from fxsurgery.request import OptimizeRequest
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.searchers.methods import Method
from fxsurgery.training import Task
from fxsurgery.training.evaluate import require_ends

_DATA_LINE = "fxsurgery.optimize(model, {}train_data=(images, labels), val_data=(images, labels))"


def task_of(request: OptimizeRequest, method: Method, settings: Settings) -> Task | None:
    """Return the task that the data of a request make; `None` without data.

    Raises:
        DataError: data are missing, contradict each other, or do not end.
    """
    return _with_end(_task(request, method, settings))


def _task(request: OptimizeRequest, method: Method, settings: Settings) -> Task | None:
    if isinstance(request.train_data, Task):
        if given := _given(request, "val_data", "test_data", "loss", "metric", "batch_dims"):
            raise DataError(
                f"{named('train_data')} is a Task, which holds these already: leave {_listed(given)} out"
            ).at(given[0])
        return request.train_data
    if not request.data_free:
        _require_data(request)
        task = Task.of(
            request.train_data, request.val_data, test_data=request.test_data, loss=request.loss,
            metric=request.metric, batch_size=request.batch_size, seed=request.seed,
        )  # fmt: skip
        return task if request.batch_dims is None else _stated(request, task)
    line = _data_line(request, method, settings)
    if reason := method.needs_data(settings):
        raise DataError(f"{reason}. With data: {line}")
    if not request.trained:
        raise DataError(f"{assigned('trained', value=False)} trains the weights, which needs data: {line}").at(
            "trained"
        )
    if given := _given(request, "test_data", "loss", "metric"):
        data = f"{named('train_data')} and {named('val_data')}"
        raise DataError(f"{_listed(given)} without {data}: leave them out, or {line}").at(given[0])
    return None


def _with_end(task: Task | None) -> Task | None:
    """Return the task, whose validation and test data were checked to end."""
    if task is not None:
        require_ends(task)
    return task


def _given(request: OptimizeRequest, *names: str) -> list[str]:
    return [name for name in names if getattr(request, name) is not None]


def _listed(names: list[str]) -> str:
    return ", ".join(map(named, names))


def _data_line(request: OptimizeRequest, method: Method, settings: Settings) -> str:
    """Return the line that calls `optimize` with data."""
    method_named = "" if request.method is None else f'method="{method.name}", '
    beside = method_named if request.config is None else f"config={type(settings).__name__}(...), "
    return usage(_DATA_LINE.format(beside), "train_data", "val_data", call=True)


def _stated(request: OptimizeRequest, task: Task) -> Task:
    """Return the task with the batch dims that the user declared, also by names of the model's parameters."""
    inputs, _ = task.take_apart(task.first_batch())
    names = inputs.names(request.model.forward)[: len(inputs.args)]
    return replace(task, batch_dims=by_position(request.batch_dims, names))


def _require_data(request: OptimizeRequest) -> None:
    missing = [name for name in ("train_data", "val_data") if getattr(request, name) is None]
    if missing:
        line = usage(_DATA_LINE.format(""), "train_data", "val_data", call=True)
        raise DataError(
            f"{named(missing[0])} is missing: {line}, each a tuple of tensors, a Dataset or a DataLoader; or give "
            "neither, to work without data"
        ).at(missing[0])


def located(request: OptimizeRequest, task: Task | None, program: Program) -> Task | None:
    """Return the task with the batch dims of the captured model, unless the user declared them or gave other inputs."""
    if (
        task is None
        or task.batch_dims is not None
        or request.example_inputs is not None
        or request.example_kwargs is not None
    ):
        return task
    if program.batch_dims is None or program.batch_dims == replace(program.examples, batch_dims=None).dims:
        return task
    said = statement_of(program.examples)
    by_name = task.capture_examples().kwargs and not program.example_kwargs
    return replace(task, batch_dims=said[0] if by_name else said)  # a dict by name may be the model's one input
