"""The live line of a stage, laid out for the width of the terminal: what does not fit is left out, never wrapped.

    fine-tune ━━━━━━━━━━━━╸━━━━━━━ 120/200  loss 0.1234  accuracy 0.912  0:12 left

In a narrow terminal the terms of the loss go first, then the epoch, the elapsed time and the bar; the name of the stage
is shortened before the score and the loss go. The step and the stage always stay.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fxsurgery.printable import printable

WIDEST_BAR, NARROWEST_BAR = 30, 6
"""Cells of the bar; with less room than the second there is none."""
WIDEST_STAGE, NARROWEST_STAGE = 40, 10
WIDEST_NAME = 16
"""Cells of the name of a metric or of a term of the loss."""


@dataclass
class ProgressLine:
    """Content of the line of a stage; the layout is computed each time it is drawn."""

    stage: str
    steps: int
    step: int = 0
    """Steps done; before the first one there is nothing else to show."""
    epoch: int = 0
    loss: float = math.nan
    terms: tuple[tuple[str, float], ...] = ()
    metric: tuple[str, float] | None = None
    seconds: float = 0.0
    seconds_left: float = 0.0

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield the line, for rich."""
        width = options.max_width
        texts = self._fitting(width)
        used = sum(cell_len(text) + 2 for text in texts)
        stage = Text(printable(self.stage))
        stage.truncate(max(1, min(WIDEST_STAGE, width - used)), overflow="ellipsis")
        bar = min(WIDEST_BAR, width - used - stage.cell_len - 1)
        cells: list[Text | ProgressBar] = [stage]
        if bar >= NARROWEST_BAR and "bar" not in self._left_out(width):
            cells.append(ProgressBar(total=max(self.steps, 1), completed=self.step, width=bar))
        line = Table.grid(padding=(0, 1, 0, 0))
        for _ in (*cells, *texts):
            line.add_column(no_wrap=True, overflow="crop")
        line.add_row(*cells, *(Text(f" {text}" if number else text) for number, text in enumerate(texts)))
        yield line

    def sentence(self) -> str:
        """Return the line as plain text of any width, for a log."""
        terms = "".join(f", {name} {value:.4g}" for name, value in self.terms)
        metric = "" if self.metric is None else f", {self.metric[0]} {self.metric[1]:.4g}"
        done = f"{self.stage}: step {self.step}/{self.steps}, epoch {self.epoch + 1}, loss {self.loss:.4g}"
        return f"{done}{terms}{metric}, {clock(self.seconds)} elapsed, {clock(self.seconds_left)} left"

    def _fitting(self, width: int) -> list[str]:
        """Return the texts after the bar that fit, in the order in which they are shown."""
        out = self._left_out(width)
        return [text for name, text in self._texts() if name not in out]

    def _left_out(self, width: int) -> set[str]:
        """Return the names of the parts that do not fit beside the stage: the least important ones."""
        texts, out = dict(self._texts()), set[str]()
        stage = min(cell_len(printable(self.stage)), WIDEST_STAGE)
        sizes = {name: cell_len(text) + 2 for name, text in texts.items()} | {"bar": NARROWEST_BAR + 1}
        for name in ("terms", "epoch", "elapsed", "bar", "left", "metric", "loss"):
            needed = stage if name in {"terms", "epoch", "elapsed", "bar"} else min(stage, NARROWEST_STAGE)
            if needed + sum(size for part, size in sizes.items() if part not in out) <= width:
                break
            out.add(name)
        return out

    def _texts(self) -> Iterator[tuple[str, str]]:
        yield "step", f"{self.step}/{self.steps}"
        if not self.step:
            return
        yield "epoch", f"epoch {self.epoch + 1}"
        yield "loss", f"loss {self.loss:.4g}"
        if self.terms:
            yield "terms", "  ".join(f"{_short(name)} {value:.4g}" for name, value in self.terms)
        if self.metric is not None:
            yield "metric", f"{_short(self.metric[0])} {self.metric[1]:.4g}"
        yield "elapsed", clock(self.seconds)
        yield "left", f"{clock(self.seconds_left)} left"


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours if there are any.

    Example:
        >>> clock(83), clock(3725)
        ('1:23', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _short(name: str) -> str:
    text = Text(printable(name))
    text.truncate(WIDEST_NAME, overflow="ellipsis")
    return text.plain
