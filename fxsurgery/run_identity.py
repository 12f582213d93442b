"""The identity of a run of `optimize`: the settings that determine its result, as each argument declares."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from importlib.metadata import version
from typing import Any

import torch
from torch import nn

from fxsurgery.budget import Budget, Spend
from fxsurgery.program import Program
from fxsurgery.request import OptimizeRequest, arguments_of
from fxsurgery.runs.identity import fingerprint, to_plain, weights_fingerprint
from fxsurgery.runs.layout import ENVIRONMENT
from fxsurgery.searchers.common.settings import Settings
from fxsurgery.training import Task, resolve
from fxsurgery.training.device import processes

KEYS = {"config": "settings"}
"""Arguments with another key in the identity."""


def identity_of(
    request: OptimizeRequest, resolved: Mapping[str, object], program: Program, task: Task | None
) -> dict[str, Any]:
    """Return the settings that determine the result, as plain JSON, and the environment, which changes rounding only.

    Args:
        request: the arguments of `optimize`.
        resolved: final values of the arguments that are recorded as resolved, by name.
        program: the captured model.
        task: the data; `None` without data.
    """
    recorded = {name: argument.recorded for name, argument in arguments_of(OptimizeRequest).items()}
    return {
        **{
            KEYS.get(name, name): _plain(resolved[name] if name in resolved else getattr(request, name))
            for name, how in recorded.items()
            if how == "resolved"
        },
        **{name: getattr(request, name) for name, how in recorded.items() if how == "as given"},
        "data_free": task is None,
        "task": {} if task is None else _told_task(task),
        "model": type(request.model).__name__,
        "fingerprint": fingerprint(program),
        ENVIRONMENT: {
            "fxsurgery": version("fxsurgery"),
            "torch": str(torch.__version__),
            "device": str(resolve(request.device)),
            "processes": processes(),
            "threads": torch.get_num_threads(),
        },
    }


def _plain(value: object) -> object:
    if isinstance(value, Settings):
        return {f.name: to_plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Budget | Spend):
        return {name: limit for name, limit in asdict(value).items() if limit is not None}
    if isinstance(value, nn.Module):
        return weights_fingerprint(value)
    return to_plain(value) if callable(value) else value


def _told_task(task: Task) -> dict[str, Any]:
    return {
        **{
            name: to_plain(getattr(task, name))
            for name in ("loss", "metric", "metric_name", "higher_is_better", "select")
        },
        "split": to_plain(task.split),
        **{
            name: to_plain(value)
            for name in ("batch_dims", "val_batches")
            if (value := getattr(task, name)) is not None
        },
        "batches": _batches(task),
        "tested": task.test_data is not None,
    }


def _batches(task: Task) -> dict[str, int | None]:
    return {
        name: None if isinstance(data, torch.utils.data.IterableDataset) else _length(data)
        for name, data in (("train_data", task.train_data), ("val_data", task.val_data))
    }


def _length(data: Any) -> int | None:  # noqa: ANN401
    try:
        return len(data)
    except TypeError:
        return None
