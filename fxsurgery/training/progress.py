"""Progress of a run: a live line on a terminal, an occasional line elsewhere, and the history."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fxsurgery.printable import printable
from fxsurgery.training.callback_runner import CallbackRunner
from fxsurgery.training.callbacks import Callback
from fxsurgery.training.device import leads
from fxsurgery.training.progress_line import ProgressLine

_SECONDS_OF_LINE = 0.1
"""Time between two updates of the live line."""


@dataclass(frozen=True)
class TrainingProgress:
    """Progress of a stage after a step."""

    stage: str
    epoch: int
    step: int
    """Number of steps done."""
    steps: int
    loss: float
    """Mean of `StepInfo.loss` since the last record."""
    metric: float | None
    """Validation metric if it was just measured."""
    lr: float
    seconds: float
    """Seconds since the stage began."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Means, since the last record, of the terms that the objective names."""

    def record(self) -> dict[str, Any]:
        """Return the fields as plain data; `terms` only if there are any."""
        record = dict(vars(self))
        terms = record.pop("terms")
        return {**record, "terms": dict(terms)} if terms else record

    @property
    def seconds_left(self) -> float:
        """Estimated seconds to the end of the stage, at the pace so far."""
        return self.seconds * (self.steps - self.step) / max(self.step, 1)


class Progress:
    """Shows the stages of a run and keeps their history; all stages of a run report to the same object.

    `history` holds a record for each of about 50 points of a stage and for each validation: `stage`, `epoch`, `step`,
    `steps`, `loss`, `metric` (`None` if it was not measured), `lr` and `seconds`; and `terms`, numbers by name, if the
    objective names parts of its loss.
    """

    def __init__(
        self,
        *,
        verbose: bool = True,
        console: Console | None = None,
        interval: float = 5.0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Set up; only the first process of a distributed run shows anything.

        Args:
            verbose: whether to show progress.
            console: console to write to; standard error by default.
            interval: seconds between lines if the console is not a terminal.
            callbacks: observers of the run.
        """
        self.history = list[dict[str, Any]]()
        self.callbacks = CallbackRunner(tuple(callbacks))
        self._console = console or Console(stderr=True, highlight=False)
        self._shown = verbose and leads()
        self._interval = interval
        self._last_shown = float("-inf")
        self._line: ProgressLine | None = None
        self._metric_name = "metric"
        self._metric: float | None = None

    @classmethod
    def quiet(cls) -> Self:
        """Return an object that keeps the history and shows nothing."""
        return cls(verbose=False)

    @property
    def shown(self) -> bool:
        """Whether progress is shown."""
        return self._shown

    def note(self, text: str) -> None:
        """Show a line of text."""
        if self._shown:
            self._console.print(Text(printable(text)), soft_wrap=True)

    @contextmanager
    def stage(self, name: str, steps: int, metric_name: str = "metric") -> Iterator[None]:
        """Show a stage of `steps` steps, whose progress is reported in the block."""
        self._metric_name, self._metric = metric_name, None
        self._last_shown = time.monotonic()
        console = self._console
        if not self._shown or not console.is_terminal or console.is_dumb_terminal:
            yield
            return
        self._line = ProgressLine(name, steps)
        try:
            with Live(self._line, console=console, refresh_per_second=1 / _SECONDS_OF_LINE):
                yield
        finally:
            self._line = None

    def is_due(self, step: int, steps: int) -> bool:
        """Return whether `show` would show that step now: the last one, and others unless too soon after the last."""
        if not self._shown:
            return False
        interval = self._interval if self._line is None else _SECONDS_OF_LINE
        return step == steps or time.monotonic() - self._last_shown >= interval

    def show(self, standing: TrainingProgress) -> None:
        """Show progress, unless that is too soon after the last time. A metric that was measured is kept anyway."""
        if standing.metric is not None:
            self._metric = standing.metric
        if not self.is_due(standing.step, standing.steps):
            return
        self._last_shown = time.monotonic()
        metric = None if self._metric is None else (self._metric_name, self._metric)
        line = self._line or ProgressLine(standing.stage, standing.steps)
        line.step, line.steps, line.epoch, line.loss = standing.step, standing.steps, standing.epoch, standing.loss
        line.terms, line.metric = tuple(standing.terms.items()), metric
        line.seconds, line.seconds_left = standing.seconds, standing.seconds_left
        if self._line is None:
            self.note(line.sentence())

    def record(self, standing: TrainingProgress) -> None:
        """Add progress to the history."""
        self.history.append(standing.record())
