"""The lineage of the winner of an evolutionary search: metric and size over its epochs and those of its ancestors.

The same picture as Figure 6 of ECToNAS: what was done is marked where it was done.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fxsurgery.report.chart import WIDE, Axis, Tick, axis, dots, line, stairs
from fxsurgery.report.formatting import change, count, enumerated, epochs, figure
from fxsurgery.searchers.common.trials import SearchRecord, Trial

LEAST_ROOM, A_LETTER, A_BADGE = 7.0, 1.05, 4.0
"""Percentages of the width: of the shortest mark, of a letter, and of a number."""
FEW = 40
"""Number of points up to which they are drawn as dots as well."""


@dataclass(frozen=True)
class Mark:
    """A mark where an operation was applied."""

    number: int
    label: str
    at: float
    """Position in percent from the left."""
    left: float
    """Start of the text in percent from the left; for a `flush` mark, its end in percent from the right."""
    flush: bool
    row: int
    """Row of the mark, so that no two overlap."""


@dataclass(frozen=True)
class Entry:
    """One network of the lineage."""

    number: str
    """Number of its mark."""
    epoch: str
    """Epoch at which it was created."""
    operation: str
    params: str
    change: str
    """Change of the number of parameters from the one before."""
    metric: str


@dataclass(frozen=True)
class Plot:
    """One chart of the lineage."""

    title: str
    note: str
    path: str
    dots: str
    ticks: tuple[Tick, ...]
    reference: float | None
    """Position of a horizontal line, in percent from the top."""
    summary: str


@dataclass(frozen=True)
class Lineage:
    """The charts, which share their horizontal axis, with their marks and table."""

    plots: tuple[Plot, ...]
    marks: tuple[Mark, ...]
    rows: int
    """Number of rows of marks."""
    epochs: tuple[Tick, ...]
    entries: tuple[Entry, ...]


def lineage(record: SearchRecord, metric_name: str) -> Lineage | None:
    """Return the charts of the winner's lineage; `None` if none of it was trained."""
    line_ = record.line(record.winner)
    if not line_[-1].epochs > 0:
        return None
    across = Axis(0.0, line_[-1].epochs)
    marks = tuple(_marks(record.changes(record.winner), record, across))
    plots = (_metric(line_, metric_name, across), _size(line_, across))
    return Lineage(
        plots=tuple(plot for plot in plots if plot is not None),
        marks=marks,
        rows=max((mark.row + 1 for mark in marks), default=0),
        epochs=across.across(),
        entries=tuple(_entries(line_, record)),
    )


def _begun(trial: Trial, record: SearchRecord) -> float:
    """Return the number of epochs that its ancestors had trained when it was created."""
    return 0.0 if trial.parent is None else record.trials[trial.parent].epochs


def _marks(changes: Sequence[Trial], record: SearchRecord, across: Axis) -> Iterator[Mark]:
    """Yield the marks, each in the first row with room for its text."""
    ends = list[float]()
    for number, trial in enumerate(changes, 1):
        at = 100 * across.up(_begun(trial, record))
        room = max(LEAST_ROOM, A_BADGE + A_LETTER * len(trial.operation))
        flush = at + room > 100
        begins = max(at - room, 0.0) if flush else at
        row = next((i for i, end in enumerate(ends) if end <= begins), len(ends))
        ends[row : row + 1] = [begins + room]
        yield Mark(number, trial.operation, round(at, 2), round(100 - at if flush else at, 2), flush, row)


def _metric(line_: Sequence[Trial], metric_name: str, across: Axis) -> Plot | None:
    start = line_[0].score
    known = start if start is not None and math.isfinite(start) else None
    points = [(across.x(at), value) for c in line_ for at, value in c.scores if math.isfinite(value)]
    if known is not None and not line_[0].scores:
        points.insert(0, (0.0, known))
    if not points:
        return None
    values = [value for _, value in points]
    scale = axis([*values, *([] if known is None else [known])])
    return Plot(
        title=f"Validation {metric_name}",
        note="" if known is None else f"dashed: the start, {figure(known)}",
        path=line(points, scale),
        dots=dots(points, scale) if len(points) <= FEW else "",
        ticks=scale.ticks(),
        reference=None if known is None else round(100 * (1 - scale.up(known)), 2),
        summary=f"Over {epochs(line_[-1].epochs)} epochs, from {figure(values[0])} to {figure(values[-1])}",
    )


def _size(line_: Sequence[Trial], across: Axis) -> Plot:
    begun = [0.0, *(c.epochs for c in line_[:-1])]
    points = [(across.x(at), float(c.costs["params"])) for at, c in zip(begun, line_, strict=True)]
    scale = axis([params for _, params in points], from_zero=True, may_be_log=True)
    first, last = line_[0].costs["params"], line_[-1].costs["params"]
    return Plot(
        title="Parameters",
        note=enumerated([*(["logarithmic"] if scale.logarithmic else []), f"{count(first)} to {count(last)}"]),
        path=stairs(points, WIDE, scale),
        dots="",
        ticks=scale.ticks(),
        reference=None,
        summary=f"From {count(first)} to {count(last)}, in steps",
    )


def _entries(line_: Sequence[Trial], record: SearchRecord) -> Iterator[Entry]:
    """Yield the start and each change, with the metric that it reached before the next."""
    changed = {c.number for c in record.changes(line_[-1].number)}
    stays = [i for i, c in enumerate(line_) if i == 0 or c.number in changed]
    for number, (i, following) in enumerate(zip(stays, [*stays[1:], len(line_)], strict=True)):
        trial, last = line_[i], line_[following - 1]
        before = line_[i - 1].costs["params"] if i else trial.costs["params"]
        yield Entry(
            number=str(number) if i else "",
            epoch=epochs(_begun(trial, record)),
            operation=trial.operation,
            params=count(trial.costs["params"]),
            change=change(before, trial.costs["params"]) if i else "",
            metric=figure(math.nan if last.score is None else last.score),
        )
