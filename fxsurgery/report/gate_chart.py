"""A histogram of the gates over 0 to 1."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fxsurgery.report.chart import HIGH, WIDE, Tick, axis
from fxsurgery.report.formatting import count, enumerated
from fxsurgery.searchers.dnal import UNDECIDED

BINS = 20


@dataclass(frozen=True)
class Bar:
    """One column of the histogram, in the box of the chart."""

    x: float
    y: float
    width: float
    height: float
    label: str


@dataclass(frozen=True)
class Histogram:
    """The columns, and the numbers of open, closed and undecided gates."""

    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    total: int
    closed: int
    undecided: int
    open: int
    low: float
    high: float
    """Gates between `low` and `high` count as undecided."""

    @property
    def summary(self) -> str:
        """Description for screen readers."""
        parts = [f"{count(self.closed)} closed", f"{count(self.undecided)} undecided", f"{count(self.open)} open"]
        return f"Of {count(self.total)} gates, {enumerated(parts)}"


def histogram(gates: Sequence[float]) -> Histogram | None:
    """Return the histogram of gates, 0 to 1; `None` if there are none."""
    values = np.asarray([g for g in gates if math.isfinite(g)])
    if not len(values):
        return None
    counts, edges = np.histogram(values, BINS, (0.0, 1.0))
    scale = axis([0.0, float(counts.max())], from_zero=True)
    low, high = UNDECIDED
    closed, open_ = int((values <= low).sum()), int((values >= high).sum())
    return Histogram(
        bars=tuple(_bar(int(n), float(edge), scale.up(float(n))) for n, edge in zip(counts, edges[:-1], strict=True)),
        ticks=tuple(tick for tick in scale.ticks() if "." not in tick.label or "k" in tick.label),
        total=len(values),
        closed=closed,
        undecided=len(values) - closed - open_,
        open=open_,
        low=low,
        high=high,
    )


def _bar(gates: int, edge: float, up: float) -> Bar:
    """Return a column, which is visible if it holds any gate."""
    height = HIGH * max(up, 0.012) if gates else 0.0
    label = f"{edge:.2f} to {edge + 1 / BINS:.2f}: {count(gates)}"
    room = WIDE / BINS
    x, y = round(WIDE * edge + 0.06 * room, 2), round(HIGH - height, 2)
    return Bar(x, y, round(0.88 * room, 2), round(height, 2), label)
