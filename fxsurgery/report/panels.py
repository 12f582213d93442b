"""Panels of figures: a frame with a title, ticks and grid lines, into which the paths of a chart are drawn.

The paths are those of the page, from a box of `fxsurgery.report.chart`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fxsurgery.display.figure import ACCENT, NEUTRAL, WIDTH, Box, element, fitted, text
from fxsurgery.report.chart import HIGH, WIDE, Tick

LEFT, RIGHT, HEAD = 62.0, 12.0, 26.0
"""Room beside the frame for ticks, and above it for the title."""
LETTER = 6.6
"""Approximate width of a letter in pixels."""


@dataclass(frozen=True)
class Panel:
    """A frame at a height of a figure."""

    top: float
    height: float
    head: float = HEAD
    """Room above the frame."""

    @property
    def box(self) -> Box:
        """The inside of the frame."""
        return Box(LEFT, self.top + self.head, WIDTH - LEFT - RIGHT, self.height)

    @property
    def bottom(self) -> float:
        """The lower edge of the frame."""
        return self.top + self.head + self.height

    def frame(self, title: str, note: str, ticks: Sequence[Tick]) -> Iterator[str]:
        """Yield the title, the grid lines with their labels, and the frame."""
        yield text(LEFT, self.top + 16, title, bold=True)
        if note:
            yield text(WIDTH - RIGHT, self.top + 16, note, side="end", muted=True)
        for tick in ticks:
            y = self.y(tick.at)
            yield element("path", d=f"M{LEFT:.2f} {y:.2f}H{WIDTH - RIGHT:.2f}", stroke="currentColor", opacity=0.18)
            yield text(LEFT - 8, y + 4, tick.label, side="end", muted=True)
        box = self.box
        yield element(
            "rect",
            x=box.x,
            y=box.y,
            width=box.width,
            height=box.height,
            fill="none",
            stroke="currentColor",
            opacity=0.3,
        )

    def across(self, ticks: Sequence[Tick], label: str) -> Iterator[str]:
        """Yield grid lines down, with their labels under the frame, and what they are."""
        for tick in ticks:
            x, box = self.x(tick.at), self.box
            yield element("path", d=f"M{x:.2f} {box.y:.2f}V{self.bottom:.2f}", stroke="currentColor", opacity=0.18)
            yield text(x, self.bottom + 16, tick.label, side="middle", muted=True)
        yield text(LEFT + self.box.width / 2, self.bottom + 32, label, side="middle", muted=True)

    def line(self, path: str, *, color: str = ACCENT) -> str:
        """Return a line."""
        return element("path", d=self.fitted(path), fill="none", stroke=color, stroke_width=2, stroke_linejoin="round")

    def dots(self, path: str, *, color: str = ACCENT, size: float = 6, opacity: float = 1) -> str:
        """Return dots: lines of no length with round ends."""
        return element(
            "path", d=self.fitted(path), fill="none", stroke=color, stroke_width=size, stroke_linecap="round",
            opacity=opacity,
        )  # fmt: skip

    def reference(self, at: float) -> str:
        """Return a dashed line across, at a percentage from the top."""
        y = self.y(at)
        return element(
            "path",
            d=f"M{LEFT:.2f} {y:.2f}H{WIDTH - RIGHT:.2f}",
            stroke=NEUTRAL,
            stroke_width=1.5,
            stroke_dasharray="5 4",
        )

    def cut(self, at: float) -> str:
        """Return a dotted line down, at a percentage from the left."""
        x = self.x(at)
        return element(
            "path", d=f"M{x:.2f} {self.box.y:.2f}V{self.bottom:.2f}", stroke=ACCENT, stroke_dasharray="2 3", opacity=0.7
        )

    def band(self, left: float, width: float) -> str:
        """Return a shaded band; both arguments are fractions of the width."""
        box = self.box
        x, wide = box.x + left * box.width, width * box.width
        return element("rect", x=x, y=box.y, width=wide, height=box.height, fill="currentColor", opacity=0.06)

    def fitted(self, path: str) -> str:
        """Return a path of a chart, moved into the frame."""
        return fitted(path, self.box, WIDE, HIGH)

    def x(self, at: float) -> float:
        """Return the position of a percentage from the left."""
        return self.box.x + at * self.box.width / 100

    def y(self, at: float) -> float:
        """Return the position of a percentage from the top."""
        return self.box.y + at * self.box.height / 100


@dataclass(frozen=True)
class BarRow:
    """One row of a bar chart."""

    name: str
    before: float
    """Length of the outline; 0 for none."""
    after: float
    """Length of the bar."""
    label: str
    color: str = ACCENT


ROW, NAMES = 20.0, 220.0
"""Height of a row, and room for its name."""


def bars(rows: Sequence[BarRow], top: float) -> Iterator[str]:
    """Yield rows of horizontal bars, relative to the longest of them."""
    longest = max((max(row.before, row.after) for row in rows), default=0) or 1
    room = WIDTH - NAMES - 150
    for number, row in enumerate(rows):
        y = top + ROW * number
        yield text(NAMES - 8, y + 13, shortened(row.name, NAMES - 16), side="end")
        for length, look in ((row.after, {"fill": row.color}), (row.before, {"fill": "none", "stroke": NEUTRAL})):
            if length:
                yield element("rect", x=NAMES, y=y + 3, width=room * length / longest, height=ROW - 7, **look)
        yield text(NAMES + room * max(row.before, row.after) / longest + 6, y + 13, row.label, muted=True)


def shortened(name: str, room: float) -> str:
    """Return a name that fits into a number of pixels, its start left out if it is too long."""
    letters = int(room / LETTER)
    return name if len(name) <= letters else f"...{name[-(letters - 3) :]}"
