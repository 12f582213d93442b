"""Scatter plot of cost and metric of every trained network of a search, with the Pareto front."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fxsurgery.budget import Metric
from fxsurgery.report.chart import WIDE, Axis, Tick, axis, dots, line, stairs
from fxsurgery.report.formatting import count, figure
from fxsurgery.searchers.common.pareto import ParetoMember
from fxsurgery.searchers.common.trials import SearchRecord

NAMES: Mapping[Metric, str] = {
    "params": "parameters", "macs": "MACs", "peak_activation_bytes": "peak activation bytes",
    "latency_ms": "latency, ms",
}  # fmt: skip
FLUSH_FROM = 70.0
"""Position in percent from the left from which on a label ends at its point instead of starting there."""
TOO_HIGH, TOO_LOW = 8.0, 92.0
"""Positions in percent from the top beyond which a label has no room above its point, or below."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Named:
    """A labeled point."""

    name: str
    kind: str
    path: str
    left: float
    """Position in percent from the left, or from the right for a `flush` label."""
    top: float
    flush: bool
    below: bool
    """Whether the label stands below the point."""


@dataclass(frozen=True)
class FrontPoint:
    """One network of the front, as text."""

    number: int
    chosen: bool
    metric: str
    params: str
    macs: str
    latency: str
    """Latency in milliseconds; empty if it was not measured."""
    done: str
    peak: str
    """Peak activation bytes; empty if they were not counted."""


@dataclass(frozen=True)
class Scatter:
    """The scatter plot and the table of the front."""

    axis: str
    """Cost on the horizontal axis, as in `SearchRecord`."""
    title: str
    note: str
    others: str
    """Path of the dots that are not on the front."""
    front: str
    members: str
    """Path of the dots on the front."""
    named: tuple[Named, ...]
    ticks: tuple[Tick, ...]
    across: tuple[Tick, ...]
    places: tuple[FrontPoint, ...]
    summary: str


def scatter(record: SearchRecord, members: Sequence[ParetoMember], metric_name: str) -> Scatter | None:
    """Return the scatter plot; `None` if no network has both a metric and a cost."""
    others, front = _others(record, members), _front(record, members)
    every = [*others.values(), *front.values()]
    if not every:
        return None
    across = axis([cost for cost, _ in every], may_be_log=True)
    scale = axis([metric for _, metric in every])
    boxed = [(across.x(cost), metric) for cost, metric in front.values()]
    return Scatter(
        axis=record.axis,
        title=f"Validation {metric_name} against {NAMES[record.axis]}",
        note=f"{NAMES[record.axis]} are logarithmic" if across.logarithmic else "",
        others=dots([(across.x(cost), metric) for cost, metric in others.values()], scale),
        front=stairs(boxed, WIDE, scale) if boxed else "",
        members=dots(boxed, scale),
        named=tuple(_named(record, members, {**front, **others}, across, scale)),
        ticks=scale.ticks(),
        across=across.across(),
        places=tuple(_place(i, member, record) for i, member in enumerate(members)),
        summary=f"{count(len(every))} networks, {count(len(front))} of them on the Pareto front",
    )


def _others(record: SearchRecord, members: Sequence[ParetoMember]) -> dict[int, Point]:
    """Return cost and score of fully trained networks by number, except those on the front."""
    known = {(m.trial.number, m.trial.epochs) for m in members}
    found = dict[int, Point]()
    for trial in record.trials:
        cost = trial.cost(record.axis)
        score = trial.score
        is_known = (trial.number, trial.epochs) in known
        if not is_known and cost is not None and score is not None and math.isfinite(score):
            found[trial.number] = (cost, score)
    return found


def _front(record: SearchRecord, members: Sequence[ParetoMember]) -> dict[int, Point]:
    costs = {m.trial.number: (m.along(record.axis), m.metric) for m in members}
    return {n: (cost, metric) for n, (cost, metric) in costs.items() if cost is not None and math.isfinite(metric)}


def _named(
    record: SearchRecord, members: Sequence[ParetoMember], points: Mapping[int, Point], across: Axis, scale: Axis
) -> Iterator[Named]:
    """Yield the start with its label below, and the winner with its label away from the front, if there is room."""
    for name, number in (("start", 0), ("winner", record.winner)):
        if number not in points:
            continue
        cost, metric = points[number]
        left, top = 100 * across.up(cost), 100 * (1 - scale.up(metric))
        flush = left > FLUSH_FROM
        path = line([(across.x(cost), metric)], scale) + "h0"
        is_on_front = any(record.is_winner(m.trial) for m in members)
        below = top < TOO_HIGH or (not (name == "winner" and is_on_front) and top < TOO_LOW)
        yield Named(name, name, path, round(100 - left if flush else left, 2), round(top, 2), flush, below)


def _place(number: int, member: ParetoMember, record: SearchRecord) -> FrontPoint:
    trial = member.trial
    return FrontPoint(
        number=number,
        chosen=record.is_winner(trial),
        metric=figure(member.metric),
        params=count(trial.costs["params"]),
        macs=count(trial.costs["macs"]),
        latency="" if member.latency_ms is None else figure(member.latency_ms, 3),
        done=record.done(trial.number),
        peak="" if (peak := trial.cost("peak_activation_bytes")) is None else count(peak),
    )
