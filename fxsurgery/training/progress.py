"""What is seen of a training: a live line on a terminal, an occasional line elsewhere, and its history."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.text import Text

from fxsurgery.printable import printable
from fxsurgery.training.callback_runner import CallbackRunner
from fxsurgery.training.callbacks import Callback
from fxsurgery.training.device import leads

_SECONDS_OF_BAR = 0.1
"""Between two updates of the live line, which is drawn as often."""


@dataclass(frozen=True)
class TrainingProgress:
    """Where a stage is after a step."""

    stage: str
    epoch: int
    step: int
    """Steps done."""
    steps: int
    loss: float
    """Mean of the loss, as `StepInfo.loss` has it, since the last standing that was recorded."""
    metric: float | None
    """The validation metric, where it was just measured."""
    lr: float
    seconds: float
    """Since the stage began."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """Means, likewise, of the terms that the objective names."""

    def record(self) -> dict[str, Any]:
        """Return the fields as plain data, `terms` only where there are any."""
        found = dict(vars(self))
        terms = found.pop("terms")
        return {**found, "terms": dict(terms)} if terms else found

    @property
    def seconds_left(self) -> float:
        """At the pace so far."""
        return self.seconds * (self.steps - self.step) / max(self.step, 1)


class Progress:
    """Shows the stages of a run and keeps their history; every stage of a run reports to the same one.

    `history` holds a record for each of about 50 points of a stage and each validation: `stage`, `epoch`,
    `step`, `steps`, `loss`, `metric` (`None` where it was not measured), `lr` and `seconds`; and `terms`, numbers by
    name, where the objective names parts of its loss.
    """

    def __init__(
        self,
        *,
        verbose: bool = True,
        console: Console | None = None,
        interval: float = 5.0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """Show things when `verbose`, and not from the other processes of a distributed run.

        Args:
            verbose: whether to show anything at all.
            console: where; standard error unless said.
            interval: seconds between lines where there is no terminal.
            callbacks: observers of the run.
        """
        self.history = list[dict[str, Any]]()
        self.callbacks = CallbackRunner(tuple(callbacks))
        self._console = console or Console(stderr=True, highlight=False)
        self._shown = verbose and leads()
        self._interval = interval
        self._last_shown = float("-inf")
        self._bar: Bar | None = None
        self._metric_name = "metric"
        self._metric: float | None = None

    @classmethod
    def quiet(cls) -> Self:
        """One that keeps the history and shows nothing."""
        return cls(verbose=False)

    @property
    def shown(self) -> bool:
        """Whether anything is shown."""
        return self._shown

    def note(self, text: str) -> None:
        """Show a line of text."""
        if self._shown:
            self._console.print(Text(printable(text)), soft_wrap=True)

    @contextmanager
    def stage(self, name: str, steps: int, metric_name: str = "metric") -> Iterator[None]:
        """While the block runs, a stage of so many steps reports its standings."""
        self._metric_name, self._metric = metric_name, None
        self._last_shown = time.monotonic()
        if not (self._shown and self._console.is_terminal):
            yield
            return
        with _bar(self._console) as bar:
            bar.add_task(printable(name), total=steps, seen="")
            self._bar = bar
            try:
                yield
            finally:
                self._bar = None

    def is_due(self, step: int, steps: int) -> bool:
        """Whether `show` would show that step now: the last one, and others unless too soon after what was shown."""
        if not self._shown:
            return False
        interval = self._interval if self._bar is None else _SECONDS_OF_BAR
        return step == steps or time.monotonic() - self._last_shown >= interval

    def show(self, standing: TrainingProgress) -> None:
        """Show a standing, unless that is too soon after the last. A metric that was measured is kept anyway."""
        if standing.metric is not None:
            self._metric = standing.metric
        if not self.is_due(standing.step, standing.steps):
            return
        self._last_shown = time.monotonic()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=standing.step, seen=self._seen(standing))
        else:
            self.note(
                f"{standing.stage}: step {standing.step}/{standing.steps}, {self._seen(standing)}, "
                f"{clock(standing.seconds)} gone, {clock(standing.seconds_left)} left"
            )

    def record(self, standing: TrainingProgress) -> None:
        """Keep a standing in the history."""
        self.history.append(standing.record())

    def _seen(self, standing: TrainingProgress) -> str:
        metric = "" if self._metric is None else f", {self._metric_name} {self._metric:.4g}"
        terms = "".join(f", {name} {value:.4g}" for name, value in standing.terms.items())
        return printable(f"epoch {standing.epoch + 1}, loss {standing.loss:.4g}{terms}{metric}")


def _bar(console: Console) -> Bar:
    return Bar(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[seen]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )


def clock(seconds: float) -> str:
    """A duration: hours, where there are any, minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
