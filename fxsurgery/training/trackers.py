"""Loggers: a callback that passes the scalars of a run to an experiment tracker of Accelerate.

Logged are `STAGE/loss`, `STAGE/lr` and the terms of the loss about 100 times a stage, each a mean since the last time,
`STAGE/val/METRIC` after each validation, and at the end the scores and costs of the result as `result/NAME`. The step
is the number of optimizer steps of the whole run. Only the first process of a distributed run logs.
"""

import math
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeAlias

import torch
from accelerate.state import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers
from typing_extensions import override

from fxsurgery.argument_names import assigned
from fxsurgery.errors import MissingExtraError, SurgeryError
from fxsurgery.training.callbacks import Callback, RunBegin, RunEnd, StageEnd, StepEnd, Validation
from fxsurgery.training.device import own_accelerate_state

Logger: TypeAlias = str | GeneralTracker
"""Name of a tracker of Accelerate, such as `tensorboard`, or a tracker of the user's own."""
POINTS = 100
"""Points of each curve of a stage."""
EXTRAS = ("tensorboard", "wandb", "mlflow")
"""Trackers whose package is an extra of this package."""
PROJECT = "fxsurgery"


class TrackerCallback(Callback):
    """Passes scalars to a tracker.

    Args:
        tracker: an instance of `accelerate.tracking.GeneralTracker`.
    """

    def __init__(self, tracker: GeneralTracker) -> None:
        self.tracker = tracker
        self._sums = dict[str, float]()
        self._count = 0
        self._global_step = 0

    @property
    @override
    def label(self) -> str:
        return f"logger {self.tracker.name}"

    @override
    def on_run_begin(self, event: RunBegin) -> None:
        with _accelerate_state():
            if callable(start := getattr(self.tracker, "start", None)):  # older trackers start when they are made
                start()
            self.tracker.store_init_configuration({"method": event.method, **event.hyperparameters})

    @override
    def on_step_end(self, event: StepEnd) -> None:
        self._global_step = event.global_step
        for name, value in {"loss": event.loss, **event.terms}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if event.step == event.steps or event.step % math.ceil(event.steps / POINTS) == 0:
            means = {name: value / self._count for name, value in self._sums.items()}
            self._log(event.stage, {**means, "lr": event.lr, "epoch": event.epoch})
            self._forget()

    @override
    def on_validation(self, event: Validation) -> None:
        self._global_step = event.global_step
        figures = dict(event.figures) if len(event.figures) > 1 else {event.metric: event.score}
        loss = {} if event.loss is None else {"loss": event.loss}
        self._log(f"{event.stage}/val", {**loss, **figures})

    @override
    def on_stage_end(self, event: StageEnd) -> None:
        self._forget()

    @override
    def on_run_end(self, event: RunEnd) -> None:
        self._log("result", event.results)
        with _accelerate_state():
            self.tracker.finish()

    def _log(self, group: str, values: Any) -> None:  # noqa: ANN401 -- numbers by name
        named = {_tag(f"{group}/{name}"): value for name, value in values.items()}
        if named:
            with _accelerate_state():
                self.tracker.log(named, step=self._global_step)

    def _forget(self) -> None:
        self._sums.clear()
        self._count = 0


def tracker_callbacks(loggers: Logger | Sequence[Logger], folder: Path) -> tuple[TrackerCallback, ...]:
    """Return a callback for each logger; nothing is written before the run begins.

    Args:
        loggers: one or several.
        folder: where trackers write that need a folder, each into one of its own name.

    Raises:
        MissingExtraError: the package of a tracker is not installed.
        SurgeryError: there is no such tracker, or it is named twice.
    """
    several = [loggers] if isinstance(loggers, str | GeneralTracker) else list(loggers)
    names = [one for one in several if isinstance(one, str)]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SurgeryError(f"{assigned('loggers', min(twice))} is given twice; name each logger once").at("loggers")
    return tuple(TrackerCallback(_made(one, folder) if isinstance(one, str) else one) for one in several)


def _made(name: str, folder: Path) -> GeneralTracker:
    if name not in LOGGER_TYPE_TO_CLASS:
        near = get_close_matches(name, LOGGER_TYPE_TO_CLASS, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}"
        raise SurgeryError(f"{assigned('loggers', name)}: there is no logger of this name; {hint}").at("loggers")
    if name not in map(str, get_available_trackers()):
        package = f"'fxsurgery[{name}]'" if name in EXTRAS else name
        raise MissingExtraError(
            f"{assigned('loggers', name)} requires the package of this logger, which is not installed; "
            f"run: pip install {package}"
        ).at("loggers")
    kind = LOGGER_TYPE_TO_CLASS[name]
    if kind.requires_logging_directory:
        return kind(name, str(folder))
    return kind(os.environ.get("WANDB_PROJECT", PROJECT) if name == "wandb" else PROJECT)


@contextmanager
def _accelerate_state() -> Iterator[None]:
    """Give trackers the state of Accelerate that they ask for, and leave the process's own as it is."""
    with own_accelerate_state(torch.device("cpu")):
        PartialState(cpu=True)
        yield


def _tag(name: str) -> str:
    """Return a name that every tracker takes: MLflow refuses other characters."""
    return re.sub(r"[^\w\-. :/]+", "", name)
