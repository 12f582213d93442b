"""Training curves: loss, validation metric and learning rate over the steps of all stages in sequence."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from fxsurgery.report.chart import WIDE, Tick, axis, dots, line
from fxsurgery.report.formatting import count, figure

LEAST_SHARE = 0.12
"""Smallest fraction of the width of a stage, while there are few stages."""


@dataclass(frozen=True)
class StageCurve:
    """The records of one stage, and its part of the width of the chart."""

    name: str
    records: tuple[Mapping[str, Any], ...]
    left: float
    """Left edge, 0 to 1; `width` is relative likewise."""
    width: float

    @property
    def steps(self) -> int:
        """Number of optimizer steps."""
        return _steps(self.records)

    def points(self, key: str) -> list[tuple[float, float]]:
        """Return x coordinate and value of each record with a finite value."""
        known = [(r["step"], value) for r in self.records if _finite(value := r.get(key))]
        return [(WIDE * (self.left + self.width * s / self.steps), v) for s, v in known]


@dataclass(frozen=True)
class Curve:
    """One chart of training curves."""

    title: str
    lines: tuple[str, ...]
    """Path of each stage."""
    dots: str
    """Path of the single points, if they are few."""
    ticks: tuple[Tick, ...]
    reference: float | None
    """Position of a horizontal line for the original, in percent from the top."""
    note: str
    """Explanation of the axis or the reference."""
    summary: str
    """Description for screen readers."""


def stages(history: Sequence[Mapping[str, Any]]) -> tuple[StageCurve, ...]:
    """Return the stages of a history, in order; a stage that starts over counts as another."""
    runs = [run for run in _runs(history) if _steps(run) > 0]
    shares = [_steps(run) for run in runs]
    least = min(LEAST_SHARE, 0.5 / max(len(runs), 1)) * sum(shares)
    widths = [max(share, least) for share in shares]
    total, left, found = sum(widths), 0.0, list[StageCurve]()
    for run, width in zip(runs, widths, strict=True):
        found.append(StageCurve(str(run[0].get("stage", "training")), tuple(run), left / total, width / total))
        left += width
    return tuple(found)


def curves(found: Sequence[StageCurve], metric_name: str, original: float | None) -> tuple[Curve, ...]:
    """Return the charts for which there are values.

    Args:
        found: the stages.
        metric_name: what is measured on validation data.
        original: the original's validation metric.
    """
    drawn = (
        _curve("Training loss", found, "loss", may_be_log=True),
        _curve(f"Validation {metric_name}", found, "metric", reference=original),
        _curve("Learning rate", found, "lr", from_zero=True),
    )
    return tuple(curve for curve in drawn if curve is not None)


def _curve(
    title: str, found: Sequence[StageCurve], key: str, *, reference: float | None = None, **scaling: bool
) -> Curve | None:
    points = [stage.points(key) for stage in found]
    values = [value for run in points for _, value in run]
    if not values:
        return None
    known = reference if reference is not None and math.isfinite(reference) else None
    scale = axis([*values, *([] if known is None else [known])], **scaling)
    notes = ["logarithmic"] if scale.logarithmic else []
    notes += [f"dashed: the original, {figure(known)}"] if known is not None else []
    few = [point for run in points if len(run) <= 12 for point in run]
    return Curve(
        title=title,
        lines=tuple(line(run, scale) for run in points if run),
        dots=dots(few, scale),
        ticks=scale.ticks(),
        reference=None if known is None else round(100 * (1 - scale.up(known)), 2),
        note=", ".join(notes),
        summary=". ".join(_words(stage, run) for stage, run in zip(found, points, strict=True) if run),
    )


def _words(stage: StageCurve, run: list[tuple[float, float]]) -> str:
    first, last = run[0][1], run[-1][1]
    return f"{stage.name}, {count(stage.steps)} steps: from {first:.4g} to {last:.4g}"


def _runs(history: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    run = list[Mapping[str, Any]]()
    for record in history:
        if run and (record.get("stage") != run[-1].get("stage") or record["step"] <= run[-1]["step"]):
            yield run
            run = []
        run.append(record)
    if run:
        yield run


def _steps(run: Sequence[Mapping[str, Any]]) -> int:
    """Return the planned number of steps, or the number taken if that is larger or alone known."""
    return int(max(run[-1].get("steps") or 0, run[-1]["step"]))


def _finite(value: Any) -> TypeGuard[float]:  # noqa: ANN401 -- what a JSON file holds
    return isinstance(value, int | float) and math.isfinite(value)
