"""Call the callbacks of a run, so that none of them can change its result."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from fxsurgery.errors import CallbackError, SurgeryError, reason_of, typed_reason
from fxsurgery.seeding import random_states_kept
from fxsurgery.training.callbacks import Callback, Event, RunBegin, RunEnd, StageBegin, StageEnd, StepEnd, Validation
from fxsurgery.training.device import leads
from fxsurgery.training.evaluate import Score
from fxsurgery.training.step import StepInfo

_METHODS: Mapping[type[Event], str] = {
    RunBegin: "on_run_begin",
    StageBegin: "on_stage_begin",
    StepEnd: "on_step_end",
    Validation: "on_validation",
    StageEnd: "on_stage_end",
    RunEnd: "on_run_end",
}


@dataclass(eq=False)
class CallbackRunner:
    """Calls the callbacks of a run."""

    callbacks: Sequence[Callback] = ()
    steps: int = field(default=0, init=False)
    """Optimizer steps of the stages that ended."""
    stages: int = field(default=0, init=False)
    """Stages that began to train."""
    _step: int = field(default=0, init=False)
    """Steps of the stage under way."""
    _score: float | None = field(default=None, init=False)

    def __bool__(self) -> bool:
        return bool(self.callbacks) and leads()

    def emit(self, event: Event) -> None:
        """Pass an event to every callback.

        Raises:
            CallbackError: one of them raised.
        """
        if not self:
            return
        name = _METHODS[type(event)]
        for callback in self.callbacks:
            method = getattr(callback, name)
            if getattr(method, "__func__", None) is not getattr(Callback, name):
                _call(callback, name, event)

    @contextmanager
    def run(self, method: str, asked: Mapping[str, Any]) -> Iterator[dict[str, float]]:
        """Report a run; yields the dict to write its results into.

        Args:
            method: name of the method.
            asked: arguments and settings as plain JSON.
        """
        self.emit(RunBegin(method, MappingProxyType(dict(_flat(asked)))))
        results = dict[str, float]()
        try:
            yield results
        except CallbackError:
            self._end_quietly("a callback failed")
            raise
        except BaseException as error:
            self._end_quietly(reason_of(error))
            raise
        self.emit(RunEnd(MappingProxyType(results)))

    def _end_quietly(self, failure: str) -> None:
        """Report the end of a run that failed; the error of that run matters more than those of callbacks."""
        for callback in self.callbacks if self else ():
            try:
                _call(callback, "on_run_end", RunEnd(failure=failure))
            except CallbackError:
                continue

    @contextmanager
    def stage(self, name: str, steps: int, metric: str, step: int = 0) -> Iterator[None]:
        """Report a stage, whose steps and validations are reported in the block."""
        self._step, self._score = step, None
        self.stages += 1
        self.emit(StageBegin(name, steps, metric, step))
        try:
            yield
        except CallbackError:
            raise
        except SurgeryError as error:
            self._end_stage(name, reason_of(error))
            raise
        self._end_stage(name, None)

    def _end_stage(self, name: str, failure: str | None) -> None:
        done, self._step = self._step, 0
        self.steps += done
        self.emit(StageEnd(name, done, self._score, failure))

    def step(self, info: StepInfo) -> None:
        """Report a step."""
        self._step = info.step + 1
        if self:
            terms = MappingProxyType(dict(info.terms))
            place = (info.stage, self._step, info.steps, info.epoch)
            self.emit(StepEnd(*place, info.loss, info.learning_rate, self.steps + self._step, terms))

    def validation(self, stage: str, metric: str, score: Score) -> None:
        """Report a score on the validation data."""
        self._score = score.metric
        figures, total = MappingProxyType(dict(score.figures)), self.steps + self._step
        self.emit(Validation(stage, self._step, metric, score.metric, total, score.loss, figures))

    def job(self, name: str, metric: str, records: Sequence[Mapping[str, Any]], failure: str | None) -> None:
        """Report a training that ran as a job.

        Args:
            name: name of the job.
            metric: name of the validation metric.
            records: training curve, as `Progress.history` has it.
            failure: why it failed; `None` if it did not.
        """
        self._step, self._score = 0, None
        self.emit(StageBegin(name, records[-1]["steps"] if records else 0, metric))
        for record in records:
            place = (name, record["step"], record["steps"], record["epoch"])
            self._step, total = record["step"], self.steps + record["step"]
            terms = MappingProxyType(dict(record.get("terms", {})))
            self.emit(StepEnd(*place, record["loss"], record["lr"], total, terms))
            if record["metric"] is not None:
                self._score = record["metric"]
                self.emit(Validation(name, self._step, metric, record["metric"], total))
        self._end_stage(name, failure)

    def skip(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Count the steps of a stage that a resumed run recalls."""
        self.steps += records[-1]["step"] if records else 0


def _call(callback: Callback, name: str, event: Event) -> None:
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with random_states_kept(devices), torch.set_grad_enabled(torch.is_grad_enabled()):
        try:
            getattr(callback, name)(event)
        except Exception as error:
            where = f" in stage {event.stage!r}" if hasattr(event, "stage") else ""
            raise CallbackError(
                f"{callback.label}: {name}{where} raised {typed_reason(error)}; correct it, or leave it out"
            ) from error


def _flat(asked: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, bool | int | float | str]]:
    """Yield the plain values of nested tables by their dotted names; `settings` has no name of its own."""
    for name, value in asked.items():
        if isinstance(value, Mapping):
            yield from _flat(value, prefix if name == "settings" else f"{prefix}{name}.")
        elif isinstance(value, bool | int | float | str):
            yield f"{prefix}{name}", value
