"""Every network that an evolution trained, as a point of cost and metric, with the Pareto front through them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fxsurgery.report.chart import WIDE, Axis, Tick, axis, dots, line, stairs
from fxsurgery.report.formatting import count, figure
from fxsurgery.searchers.common.evolution import Evolution, Member

NAMES = {"params": "parameters", "macs": "MACs", "latency_ms": "latency, ms"}
FLUSH_FROM = 70.0
"""Per cent from the left, from which on a text ends at its point instead of beginning there."""
TOO_HIGH, TOO_LOW = 8.0, 92.0
"""Per cent from the top, beyond which a name has no room above its point, or below."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Named:
    """A point with its name."""

    name: str
    kind: str
    path: str
    left: float
    """Per cent; from the right, where it is `flush`."""
    top: float
    flush: bool
    below: bool
    """Whether the name stands under the point."""


@dataclass(frozen=True)
class Place:
    """One network of the front, in words."""

    number: int
    chosen: bool
    metric: str
    params: str
    macs: str
    latency: str
    """Empty where none was measured."""
    done: str


@dataclass(frozen=True)
class Scatter:
    """The chart and its table."""

    axis: str
    """Of `Evolution`."""
    title: str
    note: str
    others: str
    """The path of what is not on the front, as dots."""
    front: str
    members: str
    """Its dots."""
    named: tuple[Named, ...]
    ticks: tuple[Tick, ...]
    across: tuple[Tick, ...]
    places: tuple[Place, ...]
    summary: str


def scatter(evolution: Evolution, members: Sequence[Member], metric_name: str) -> Scatter | None:
    """The chart; `None` where nothing has both a metric and a cost."""
    others, front = _others(evolution, members), _front(evolution, members)
    every = [*others.values(), *front.values()]
    if not every:
        return None
    across = axis([cost for cost, _ in every], may_be_log=True)
    scale = axis([metric for _, metric in every])
    boxed = [(across.x(cost), metric) for cost, metric in front.values()]
    return Scatter(
        axis=evolution.axis,
        title=f"Validation {metric_name} against {NAMES[evolution.axis]}",
        note=f"{NAMES[evolution.axis]} are logarithmic" if across.logarithmic else "",
        others=dots([(across.x(cost), metric) for cost, metric in others.values()], scale),
        front=stairs(boxed, WIDE, scale) if boxed else "",
        members=dots(boxed, scale),
        named=tuple(_named(evolution, members, {**front, **others}, across, scale)),
        ticks=scale.ticks(),
        across=across.across(),
        places=tuple(_place(i, member, evolution) for i, member in enumerate(members)),
        summary=f"{count(len(every))} networks, {count(len(front))} of them on the Pareto front",
    )


def _others(evolution: Evolution, members: Sequence[Member]) -> dict[int, Point]:
    """Cost and score of what was trained to an end, by number; what is on the front just so, aside."""
    known = {(m.candidate.number, m.candidate.epochs) for m in members}
    found = dict[int, Point]()
    for candidate in evolution.candidates:
        cost = getattr(candidate, evolution.axis)
        score = candidate.score
        is_known = (candidate.number, candidate.epochs) in known
        if not is_known and cost is not None and score is not None and math.isfinite(score):
            found[candidate.number] = (cost, score)
    return found


def _front(evolution: Evolution, members: Sequence[Member]) -> dict[int, Point]:
    costs = {m.candidate.number: (m.along(evolution.axis), m.metric) for m in members}
    return {n: (cost, metric) for n, (cost, metric) in costs.items() if cost is not None and math.isfinite(metric)}


def _named(
    evolution: Evolution, members: Sequence[Member], points: Mapping[int, Point], across: Axis, scale: Axis
) -> Iterator[Named]:
    """The start, its name under it, and the winner, its name away from the front, while there is room."""
    for name, number in (("start", 0), ("winner", evolution.winner)):
        if number not in points:
            continue
        cost, metric = points[number]
        left, top = 100 * across.up(cost), 100 * (1 - scale.up(metric))
        flush = left > FLUSH_FROM
        path = line([(across.x(cost), metric)], scale) + "h0"
        is_on_front = any(evolution.is_winner(m.candidate) for m in members)
        below = top < TOO_HIGH or (not (name == "winner" and is_on_front) and top < TOO_LOW)
        yield Named(name, name, path, round(100 - left if flush else left, 2), round(top, 2), flush, below)


def _place(number: int, member: Member, evolution: Evolution) -> Place:
    candidate = member.candidate
    return Place(
        number=number,
        chosen=evolution.is_winner(candidate),
        metric=figure(member.metric),
        params=count(candidate.params),
        macs=count(candidate.macs),
        latency="" if member.latency_ms is None else figure(member.latency_ms, 3),
        done=evolution.done(candidate.number),
    )
