"""Chart shapes in a box from (0, 0), top left, to (1000, 100), which pages and figures stretch to their size.

Text is no part of the box, so that it keeps its size on a phone: ticks and stage names are positions in percent.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fxsurgery.report.formatting import short

WIDE, HIGH = 1000.0, 100.0
LOG_FROM = 30.0
"""Ratio of the largest to the smallest value above which an axis is logarithmic."""


@dataclass(frozen=True)
class Tick:
    """A labeled grid line."""

    at: float
    """Position in percent from the top, or from the left for a vertical line."""
    label: str


@dataclass(frozen=True)
class Axis:
    """Maps values to positions."""

    low: float
    high: float
    logarithmic: bool = False

    def up(self, value: float) -> float:
        """Return the relative height of a value, 0 to 1."""
        if self.logarithmic:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def y(self, value: float) -> str:
        """Return the y coordinate of a value."""
        return f"{HIGH * (1 - self.up(value)):.2f}"

    def x(self, value: float) -> float:
        """Return the x coordinate of a value on a horizontal axis."""
        return WIDE * self.up(value)

    def ticks(self) -> tuple[Tick, ...]:
        """Return three to six ticks at round values."""
        values = self._round()
        places = [round(100 * (1 - self.up(value)), 2) for value in values]
        return tuple(Tick(place, label) for place, label in zip(places, _apart(values), strict=True))

    def across(self) -> tuple[Tick, ...]:
        """Return such ticks of a horizontal axis."""
        values = self._round()
        places = [round(100 * self.up(value), 2) for value in values]
        return tuple(Tick(place, label) for place, label in zip(places, _apart(values), strict=True))

    def _round(self) -> list[float]:
        return _decades(self.low, self.high) if self.logarithmic else _steps(self.low, self.high)


def axis(values: Sequence[float], *, from_zero: bool = False, may_be_log: bool = False) -> Axis:
    """Return an axis that covers `values`, which are finite and not empty."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low > LOG_FROM:
        return Axis(low / 1.1, high * 1.1, logarithmic=True)
    low = min(low, 0.0) if from_zero else low
    flat = high - low <= 1e-9 * abs(high)
    room = 0.06 * (high - low) if not flat else 0.05 * abs(high) or 1.0
    return Axis(low if from_zero and low == 0 else low - room, high + room)


def line(points: Iterable[tuple[float, float]], scale: Axis) -> str:
    """Return the path through points of x coordinate and value."""
    return "".join(f"{'L' if i else 'M'}{x:.2f} {scale.y(value)}" for i, (x, value) in enumerate(points))


def dots(points: Iterable[tuple[float, float]], scale: Axis) -> str:
    """Return a path of zero-length lines, which round line caps render as dots."""
    return "".join(f"M{x:.2f} {scale.y(value)}h0" for x, value in points)


def stairs(points: Sequence[tuple[float, float]], end: float, scale: Axis) -> str:
    """Return a step path, in which each value holds until the next point and the last one until `end`."""
    steps = [(x, value) for x, value in points]
    until = [*(x for x, _ in steps[1:]), end]
    corners = ((at, value) for (x, value), stop in zip(steps, until, strict=True) for at in (x, stop))
    return line(corners, scale)


def _apart(values: list[float]) -> list[str]:
    """Return labels with as many digits as make them distinct."""
    written = ([short(value, digits) for value in values] for digits in range(4, 16))
    return next(labels for labels in written if len(set(labels)) == len(labels))


def _steps(low: float, high: float) -> list[float]:
    """Return round values: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [n * step for n in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    """Return powers of ten and, if these are few, twice and five times them."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    stride = max(1, (last - first) // 5)
    tens = [10.0**n for n in range(first, last + 1, stride)]
    inside = [t for t in tens if low <= t <= high]
    if len(inside) > 2:
        return inside
    return [m * t for t in tens for m in (1, 2, 5) if low <= m * t <= high]
