"""What a user sees while something trains, and the record of it that the result keeps."""

import time
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

EVERY_SECONDS = 5.0
"""Between two lines, where the output is no terminal."""


@dataclass
class Progress:
    """Reports stages and steps: a live bar on a terminal, occasional lines elsewhere, nothing if not verbose."""

    verbose: bool = True
    history: list[dict[str, Any]] = field(default_factory=list)
    """One record an epoch: stage, epoch, step, loss, lr, seconds; and one a score."""
    console: Console = field(default_factory=Console)
    _stage: str = ""
    _steps: int = 0
    _began: float = 0.0
    _said: float = 0.0
    _bar: Bar | None = None

    @classmethod
    def quiet(cls) -> "Progress":
        """One that only records."""
        return cls(verbose=False)

    def say(self, text: str) -> None:
        """A line for the user."""
        if self.verbose:
            self.console.print(text, highlight=False, markup=False)

    def begin(self, stage: str, steps: int) -> None:
        """A stage of `steps` optimiser steps starts."""
        self._stage, self._steps, self._began = stage, steps, time.monotonic()
        self._said = self._began
        if self.verbose and self.console.is_terminal:
            self._bar = Bar(
                TextColumn("{task.description:<14}"), BarColumn(), TextColumn("{task.fields[what]}"),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
            self._bar.start()
            self._bar.add_task(stage, total=steps, what="")

    def step(self, step: int, epoch: int, loss: float) -> None:
        """Step number `step` (from 1) is done."""
        now = time.monotonic()
        what = f"epoch {epoch}  step {step}/{self._steps}  loss {loss:.4f}"
        if self._bar is not None:
            self._bar.update(self._bar.tasks[0].id, completed=step, what=what)
        elif self.verbose and now - self._said >= EVERY_SECONDS:
            left = (now - self._began) / step * (self._steps - step)
            self.say(f"  {self._stage}: {what}  {left:.0f} s left")
            self._said = now

    def epoch(self, epoch: int, step: int, loss: float, rate: float) -> None:
        """An epoch is done: `loss` is its mean."""
        seconds = time.monotonic() - self._began
        record = {"stage": self._stage, "epoch": epoch, "step": step, "loss": loss, "lr": rate}
        self.history.append({**record, "seconds": seconds})

    def end(self, loss: float) -> None:
        """The stage is over."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
        seconds = time.monotonic() - self._began
        self.say(f"{self._stage}: {self._steps} steps in {seconds:.1f} s, loss {loss:.4f}")

    def score(self, what: str, name: str, value: float) -> None:
        """A validation score was measured."""
        self.history.append({"stage": what, name: value})
        self.say(f"{what}: validation {name} {value:.4f}")
