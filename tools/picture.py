"""A graph before and after a pass, side by side, as SVG.

Nodes stand in layers, each below all that it reads; a line that skips layers takes a place in each of them, so that
lines go around boxes. Within a layer, places follow the mean place of what is read and what reads (the barycenter
method of Sugiyama, Tagawa and Toda 1981). Only whole numbers are written: the same graph gives the same file.
"""

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from html import escape

LINE, PAD, GAP, RISE, MARGIN = 15, 8, 16, 26, 16
"""Pixels: a line of text, around text, between boxes, between layers, around a graph."""
LETTER = 6.7
"""Width of a letter at 11 pixels, in a font of one width."""
LOOKS = {
    "same": ("#ffffff", "#5f6b76", ""),
    "changed": ("#fff0c2", "#946200", "changed"),
    "new": ("#d6f2dc", "#1a7f37", "new"),
    "removed": ("#ffdfdc", "#b3261e", "removed"),
    "more": ("none", "none", ""),
}
"""Fill, line and word of each state of a node; `more` stands for what is not shown."""
SWEEPS = 8


@dataclass(frozen=True)
class Box:
    """One node to draw."""

    name: str
    lines: tuple[str, ...]
    reads: tuple[str, ...] = ()
    """Boxes, by name; those that are not drawn are left out."""
    state: str = "same"

    @property
    def width(self) -> float:
        """Pixels."""
        return max(len(line) for line in self.lines) * LETTER + 2 * PAD


@dataclass(eq=False)
class _Place:
    """A box, or a place that a line takes in a layer that it skips."""

    box: Box | None
    layer: int
    x: float = 0.0
    above: list["_Place"] = field(default_factory=list)
    below: list["_Place"] = field(default_factory=list)

    @property
    def width(self) -> float:
        return self.box.width if self.box else 2.0


def picture(before: Iterable[Box], after: Iterable[Box], title: str) -> str:
    """Two graphs beside each other under their headings, with what the colors mean."""
    panels = [_panel(list(before)), _panel(list(after))]
    widths = [max(width, 220) for _, width, _ in panels]
    height = max(height for _, _, height in panels)
    total, bottom = sum(widths) + 3 * MARGIN, height + 2 * LINE + MARGIN
    body, left = list[str](), MARGIN
    for (drawn, width, _), column, heading in zip(panels, widths, ("before", "after"), strict=True):
        body.append(f'<text x="{left + column // 2}" y="{MARGIN + 6}" class="heading">{heading}</text>')
        body.append(f'<g transform="translate({left + (column - width) // 2},{2 * LINE})">{drawn}</g>')
        left += column + MARGIN
    body.append(f'<path d="M{widths[0] + MARGIN * 3 // 2} {LINE}V{bottom - LINE}" class="between"/>')
    body.append(_legend(total, bottom))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {total} {bottom + 2 * LINE}" '
        f'width="{total}" height="{bottom + 2 * LINE}" role="img">\n<title>{escape(title)}</title>\n{_STYLE}\n'
        f'<rect width="100%" height="100%" fill="#ffffff"/>\n' + "\n".join(body) + "\n</svg>\n"
    )


_STYLE = (
    "<style>text{font:11px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;text-anchor:middle;fill:#1f2328}"
    ".small{font-size:10px;fill:#57606a}.heading{font-weight:bold;font-size:12px}"
    ".edge{fill:none;stroke:#5f6b76;stroke-width:1.2}.between{stroke:#d0d7de;stroke-dasharray:3 4}</style>\n"
    '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0L8 4L0 8z" fill="#5f6b76"/></marker></defs>'
)


def _legend(total: int, y: int) -> str:
    parts, shown = list[str](), [look for look in LOOKS.values() if look[2]]
    for place, (fill, stroke, word) in enumerate(shown):
        x = total * (2 * place + 1) // (2 * len(shown))
        parts.append(f'<rect x="{x - 44}" y="{y - 4}" width="12" height="12" fill="{fill}" stroke="{stroke}"/>')
        parts.append(f'<text x="{x}" y="{y + 6}" class="small">{word}</text>')
    return "".join(parts)


def _panel(boxes: list[Box]) -> tuple[str, int, int]:
    """A drawn graph, its width and its height."""
    layers = _layers(boxes)
    _order(layers)
    _spread(layers)
    left = min((p.x - p.width / 2 for row in layers for p in row), default=0)
    for place in (p for row in layers for p in row):
        place.x -= left
    tall = max((len(box.lines) for box in boxes), default=1) * LINE + PAD
    width = max((p.x + p.width / 2 for row in layers for p in row), default=0)
    drawn = [line for row in layers for p in row if p.box for line in _edges(p, tall)]
    drawn += [shape for row in layers for p in row if p.box for shape in _box(p, p.box, tall)]
    return "\n".join(drawn), round(width), len(layers) * (tall + RISE)


def _layers(boxes: list[Box]) -> list[list[_Place]]:
    """Each box below all that it reads, and a place for each line in each layer that it skips."""
    known = dict[str, _Place]()
    for box in boxes:
        above = [known[name] for name in dict.fromkeys(box.reads) if name in known]
        known[box.name] = _Place(box, 1 + max((place.layer for place in above), default=-1))
    for place in reversed(known.values()):  # what reads nothing stands right above its first reader
        if place.box and not any(name in known for name in place.box.reads):
            readers = [p.layer for p in known.values() if p.box and place.box.name in p.box.reads]
            place.layer = min(readers, default=1) - 1
    rows = [list[_Place]() for _ in range(1 + max((p.layer for p in known.values()), default=0))]
    for place in known.values():
        rows[place.layer].append(place)
        for name in dict.fromkeys(place.box.reads if place.box else ()):
            upper = known.get(name)
            while upper and upper.layer < place.layer - 1:
                passing = next((p for p in upper.below if not p.box), None) or _pass_by(upper, rows)
                upper = passing
            if upper:
                _join(upper, place)
    return rows


def _pass_by(upper: _Place, rows: list[list[_Place]]) -> _Place:
    passing = _Place(None, upper.layer + 1)
    rows[passing.layer].append(passing)
    _join(upper, passing)
    return passing


def _join(upper: _Place, lower: _Place) -> None:
    upper.below.append(lower)
    lower.above.append(upper)


def _order(layers: list[list[_Place]]) -> None:
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in layers if down else reversed(layers):
            means = {id(p): _mean([_rank(q, layers) for q in (p.above if down else p.below)]) for p in row}
            if all(mean is not None for mean in means.values()):
                row.sort(key=lambda p, means=means: means[id(p)])


def _rank(place: _Place, layers: list[list[_Place]]) -> float:
    row = layers[place.layer]
    return (next(i for i, p in enumerate(row) if p is place) + 0.5) / len(row)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _spread(layers: list[list[_Place]]) -> None:
    """Draw each place towards the mean of its neighbors, none nearer than `GAP` to the next."""
    for row in layers:
        _keep_apart(row, [0.0] * len(row))
    for sweep in range(SWEEPS):
        down = sweep % 2 == 0
        for row in layers if down else reversed(layers):
            wanted = [_mean([q.x for q in (p.above if down else p.below)]) for p in row]
            _keep_apart(row, [p.x if w is None else w for p, w in zip(row, wanted, strict=True)])


def _keep_apart(row: list[_Place], wanted: list[float]) -> None:
    edge = -float("inf")
    for place, x in zip(row, wanted, strict=True):
        place.x = max(x, edge + place.width / 2)
        edge = place.x + place.width / 2 + GAP
    off = sum(p.x - x for p, x in zip(row, wanted, strict=True)) / max(len(row), 1)
    for place in row:
        place.x -= off


def _edges(place: _Place, tall: int) -> list[str]:
    """The lines that end at a place, each from the box where it starts."""
    found = list[str]()
    for upper in place.above:
        points, at = [(place.x, place.layer * (tall + RISE))], upper
        while at.box is None:
            y = at.layer * (tall + RISE)
            points += [(at.x, y + tall), (at.x, y)]
            at = at.above[0]
        points.append((at.x, at.layer * (tall + RISE) + tall))
        found.append(_curve(points[::-1]))
    return found


def _curve(points: list[tuple[float, float]]) -> str:
    path = f"M{round(points[0][0])} {round(points[0][1])}"
    for (x, y), (to_x, to_y) in itertools.pairwise(points):
        middle = round((y + to_y) / 2)
        straight = round(x) == round(to_x)
        turn = "L" if straight else f"C{round(x)} {middle} {round(to_x)} {middle} "
        path += f"{turn}{round(to_x)} {round(to_y)}"
    return f'<path d="{path}" class="edge" marker-end="url(#tip)"/>'


def _box(place: _Place, box: Box, tall: int) -> list[str]:
    fill, stroke, word = LOOKS[box.state]
    x, y, width = round(place.x - box.width / 2), place.layer * (tall + RISE), round(box.width)
    shapes = [f'<g class="{box.state}">' + (f"<title>{word}</title>" if word else "")]
    shapes.append(f'<rect x="{x}" y="{y}" width="{width}" height="{tall}" rx="4" fill="{fill}" stroke="{stroke}"/>')
    first = y + (tall - len(box.lines) * LINE) // 2 + 11
    for number, line in enumerate(box.lines):
        small = ' class="small"' if number else ""
        shapes.append(f'<text x="{round(place.x)}" y="{first + number * LINE}"{small}>{escape(line)}</text>')
    return [*shapes, "</g>"]


def near(reads: Mapping[str, Iterable[str]], touched: set[str], steps: int) -> set[str]:
    """Return the nodes within `steps` of a touched one, along lines of either direction."""
    found = set(touched)
    for _ in range(steps):
        found |= {n for n, sources in reads.items() if found & set(sources)} | {s for n in found for s in reads[n]}
    return found
