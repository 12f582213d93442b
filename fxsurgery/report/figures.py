"""The pictures of a result or an inspection as figures, by name: `result.plot("widths")`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import get_close_matches

from fxsurgery.display import Figure
from fxsurgery.display.figure import ACCENT, NEUTRAL, WIDTH, element, text
from fxsurgery.errors import SurgeryError
from fxsurgery.program import Program
from fxsurgery.report.chart import HIGH, WIDE, Tick
from fxsurgery.report.curves import StageCurve, curves, stages
from fxsurgery.report.formatting import compact, count, percent
from fxsurgery.report.gate_chart import histogram
from fxsurgery.report.layer_table import LayerRow, layers
from fxsurgery.report.lineage_chart import lineage
from fxsurgery.report.panels import HEAD, LEFT, ROW, BarRow, Panel, bars, shortened
from fxsurgery.report.report_input import ReportInput
from fxsurgery.report.scatter import scatter

MAX_ROWS = 60
"""Number of layers that have a row each; more are drawn as columns without names."""
GAP = 14.0
"""Room between two panels."""


def plot(source: ReportInput, name: str) -> Figure:
    """Return a picture of a result.

    Args:
        source: the result.
        name: one of `FIGURES`.

    Raises:
        SurgeryError: there is no such picture, or the result has nothing to draw for it.
    """
    draw = FIGURES[chosen(name, FIGURES)]
    found = draw(source)
    if found is None:
        there = ", ".join(repr(other) for other, draw_other in FIGURES.items() if draw_other(source) is not None)
        raise SurgeryError(f"plot({name!r}): {_WHY_NONE[name]}; use one of: {there}")
    return found


def chosen(name: object, known: Mapping[str, object]) -> str:
    """Return the name of a figure that there is.

    Raises:
        SurgeryError: there is none of this name; the message lists all.
    """
    if isinstance(name, str) and name in known:
        return name
    near = get_close_matches(str(name), known, 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise SurgeryError(f"plot({name!r}): no figure has this name; {hint}use one of: {', '.join(map(repr, known))}")


def widths(source: ReportInput) -> Figure | None:
    """Draw the channels of each layer before and after."""
    rows = layers(source.original, source.program)
    if not rows:
        return None
    title, summary = "Channels of each layer", f"Channels of {len(rows)} layers, before and after"
    if len(rows) > MAX_ROWS:
        return _skyline(title, summary, rows)
    shown = [BarRow(row.name, before, after, _moved(before, after)) for row in rows for before, after in [_pair(row)]]
    return _bar_figure(title, summary, "outline: before, bar: after", shown)


def training(source: ReportInput) -> Figure | None:
    """Draw loss, validation metric and learning rate over the optimizer steps."""
    found, original = stages(source.history), source.metrics.get("val")
    drawn = curves(found, source.metric_name, None if original is None else original.before)
    parts, top, words = list[str](), 0.0, list[str]()
    for curve in drawn:
        panel = Panel(top, 130)
        parts += [panel.band(stage.left, stage.width) for stage in found[1::2]]
        parts += panel.frame(curve.title, curve.note, curve.ticks)
        parts += [panel.reference(curve.reference)] if curve.reference is not None else []
        parts += [panel.line(path) for path in curve.lines]
        parts += [panel.dots(curve.dots)] if curve.dots else []
        words.append(f"{curve.title}: {curve.summary}")
        top = panel.bottom + GAP
    if not drawn:
        return None
    parts += _stage_names(found, top)
    return Figure("Training", ". ".join(words), top + 34, "".join(parts))


def gates(source: ReportInput) -> Figure | None:
    """Draw a histogram of the gates."""
    found = histogram(source.gates)
    if found is None:
        return None
    panel = Panel(0, 150)
    parts = [panel.band(found.low, found.high - found.low), *panel.frame("Gates by value", found.summary, found.ticks)]
    for column in found.bars:
        box, high = panel.box, column.height * panel.box.height / HIGH
        parts.append(
            element(
                "rect", element("title", column.label), x=box.x + column.x * box.width / WIDE,
                y=panel.bottom - high, width=column.width * box.width / WIDE, height=high, fill=ACCENT,
            )
        )  # fmt: skip
    values = [Tick(100 * at, f"{at:g}") for at in (0.0, found.low, found.high, 1.0)]
    parts += panel.across(values, "value of the gate; between the inner lines it is undecided")
    return Figure("Gates", found.summary, panel.bottom + 42, "".join(parts))


def pareto(source: ReportInput) -> Figure | None:
    """Draw every network of a search by cost and metric, with the Pareto front."""
    found = None if source.search is None else scatter(source.search, source.pareto, source.metric_name)
    if found is None:
        return None
    panel = Panel(0, 300)
    parts = [
        *panel.frame(found.title, found.note, found.ticks),
        *panel.across(found.across, found.title.split(" against ")[-1]),
    ]
    parts += [panel.dots(found.others, color=NEUTRAL, opacity=0.6)] if found.others else []
    parts += [panel.line(found.front)] if found.front else []
    for point in found.named:
        parts.append(panel.dots(point.path, color=ACCENT if point.kind == "winner" else NEUTRAL, size=13))
        x = panel.x(100 - point.left if point.flush else point.left)
        y = panel.y(point.top) + (20 if point.below else -11)
        parts.append(text(x, y, point.name, side="end" if point.flush else "start", bold=True))
    parts += [panel.dots(found.members)] if found.members else []
    return Figure("Pareto front", found.summary, panel.bottom + 42, "".join(parts))


def evolution(source: ReportInput) -> Figure | None:
    """Draw metric and size of the winner and its ancestors over the epochs, with what was done to them."""
    found = None if source.search is None else lineage(source.search, source.metric_name)
    if found is None:
        return None
    top, parts, words = 0.0, list[str](), list[str]()
    for number, part in enumerate(found.plots):
        marks = found.marks if not number else ()
        panel = Panel(top, 140, HEAD + (16 * found.rows if marks else 0))
        for mark in marks:
            x = panel.x(100 - mark.left if mark.flush else mark.left)
            y = top + HEAD + 16 * mark.row + 10
            parts.append(text(x, y, f"{mark.number} {mark.label}", side="end" if mark.flush else "start", muted=True))
        parts += panel.frame(part.title, part.note, part.ticks)
        parts += [panel.cut(mark.at) for mark in found.marks]
        parts += [panel.reference(part.reference)] if part.reference is not None else []
        parts += [panel.line(part.path), *([panel.dots(part.dots)] if part.dots else [])]
        words.append(f"{part.title}: {part.summary}")
        top = panel.bottom + GAP
        if number + 1 == len(found.plots):
            parts += panel.across(found.epochs, "epochs that the winner and its ancestors trained")
    return Figure("Evolution of the winner", ". ".join(words), top + 28, "".join(parts))


FIGURES: Mapping[str, Callable[[ReportInput], Figure | None]] = {
    "widths": widths,
    "training": training,
    "gates": gates,
    "pareto": pareto,
    "evolution": evolution,
}
"""The pictures of a result."""
_WHY_NONE = {
    "widths": "the model has no layer with a weight matrix",
    "training": "nothing was trained, or the curves were not kept",
    "gates": "only the method dnal learns gates",
    "pareto": "only the method ectonas trains networks to compare",
    "evolution": "only the method ectonas evolves networks",
}


def macs_of_layers(program: Program) -> Figure:
    """Draw the MACs of each layer of a program, those that cannot lose channels in gray; the largest layers alone."""
    rows = [row for row in layers(program, program) if row.before is not None and row.before.macs]
    total = sum(row.before.macs for row in rows if row.before is not None) or 1.0
    largest = sorted(rows, key=lambda row: -(row.before.macs if row.before else 0.0))[:MAX_ROWS]
    shown = [
        BarRow(
            row.name,
            0,
            size.macs,
            f"{compact(size.macs)}, {percent(size.macs, total)}",
            NEUTRAL if size.fixed else ACCENT,
        )
        for row in rows
        if row in largest and (size := row.before) is not None
    ]
    summary = f"MACs of {len(shown)} layers"
    return _bar_figure("MACs of each layer", summary, "gray: none of its channels can be removed", shown)


def units_of_widths(units: Mapping[str, int]) -> Figure:
    """Draw the numbers of removable units, by the layer that produces them."""
    largest = sorted(units, key=lambda name: -units[name])[:MAX_ROWS]
    shown = [BarRow(name, 0, units[name], count(units[name])) for name in units if name in largest]
    return _bar_figure("Removable units", f"Removable units of {len(shown)} widths", "", shown)


def _bar_figure(title: str, summary: str, note: str, rows: Sequence[BarRow]) -> Figure:
    head = [text(8, 16, title, bold=True)]
    head += [text(WIDTH - 12, 16, note, side="end", muted=True)] if note else []
    return Figure(title, summary, HEAD + ROW * len(rows) + 6, "".join([*head, *bars(rows, HEAD)]))


def _pair(row: LayerRow) -> tuple[int, int]:
    return (row.before.channels if row.before else 0, row.after.channels if row.after else 0)


def _moved(before: int, after: int) -> str:
    return count(after) if before == after else f"{count(before)} \N{RIGHTWARDS ARROW} {count(after)}"


def _skyline(title: str, summary: str, rows: Sequence[LayerRow]) -> Figure:
    """Draw the layers as columns, in the order in which they run."""
    panel, most = Panel(0, 150), max(row.widest for row in rows)
    wide = panel.box.width / len(rows)
    parts = list(panel.frame(title, "outline: before, column: after", [Tick(0, count(most))]))
    for number, row in enumerate(rows):
        before, after = _pair(row)
        hint = element("title", shortened(f"{row.name}: {before} to {after}", WIDTH))
        looks = ((after, {"fill": ACCENT}), (before, {"fill": "none", "stroke": NEUTRAL, "stroke_width": 0.5}))
        columns = [
            element(
                "rect", x=panel.box.x + (number + 0.08) * wide, y=panel.y(100 - 100 * channels / most),
                width=0.84 * wide, height=panel.box.height * channels / most, **look,
            )
            for channels, look in looks
            if channels
        ]  # fmt: skip
        parts.append(element("g", hint + "".join(columns)))
    parts.append(text(LEFT, panel.bottom + 18, f"{len(rows)} layers, in the order in which they run", muted=True))
    return Figure(title, summary, panel.bottom + 30, "".join(parts))


def _stage_names(found: Sequence[StageCurve], top: float) -> Iterator[str]:
    """Yield the name and the steps of each stage under the charts, as far as there is room."""
    panel = Panel(0, 0)
    for stage in found:
        middle, room = panel.x(100 * (stage.left + stage.width / 2)), panel.box.width * stage.width
        yield text(middle, top + 4, shortened(stage.name, room), side="middle")
        yield text(middle, top + 20, shortened(f"{count(stage.steps)} steps", room), side="middle", muted=True)
