"""The notebook view of a result: a card with its most important numbers, and its pictures by name."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from fxsurgery.display import Figure, Html, card, listing, table
from fxsurgery.errors import SurgeryError
from fxsurgery.option_types import checked
from fxsurgery.report.figures import FIGURES, MAX_ROWS, plot, widths
from fxsurgery.report.formatting import change, compact, count, figure
from fxsurgery.report.layer_table import layers
from fxsurgery.report.report_input import ReportInput
from fxsurgery.surroundings import plain_surroundings


class NotebookView:
    """Shows a result in a notebook; `fxsurgery.Result` is one."""

    @checked(SurgeryError)
    @plain_surroundings()
    def plot(self: Any, name: str = "widths") -> Figure:
        """Return a picture of the report, which a notebook shows and `.save("picture.svg")` writes.

        Args:
            name: `"widths"` (channels of each layer before and after), `"training"` (loss, metric and learning rate),
                `"gates"` (of `dnal`), `"pareto"` or `"evolution"` (of `ectonas`).

        Raises:
            SurgeryError: there is no such picture, or nothing to draw; the message lists those that there are.
        """
        return plot(self, name)

    @plain_surroundings()
    def _repr_html_(self: Any) -> str:
        # A loaded model is analyzed only on request: its card has no picture.
        return result_card(self, draws=self._saved_costs is None)


def result_card(source: ReportInput, *, draws: bool) -> str:
    """Return the card of a result.

    Args:
        source: the result.
        draws: whether to draw the widths of the layers, if they are few.
    """
    model = source.asked.get("model")
    rows = [*_costs(source), *_scores(source)]
    parts = [table(("", "before", "after", "change"), rows)]
    if draws and len(layers(source.original, source.program)) <= MAX_ROWS and (drawn := widths(source)) is not None:
        parts.append(Html(drawn._repr_html_()))
    parts.append(listing("notes", source.notes))
    names = ", ".join(f"result.plot({name!r})" for name in available(source))
    return card(f"Result of {model}" if model else "Result", *parts, f"result.summary(), result.report(path); {names}")


def available(source: ReportInput) -> Sequence[str]:
    """Return the names of the pictures that a result has, without drawing the widths."""
    known = {"training": bool(source.history), "gates": bool(source.gates)}
    searched = {"pareto": source.search is not None, "evolution": source.search is not None}
    return [name for name in FIGURES if {"widths": True, **known, **searched}[name]]


def _costs(source: ReportInput) -> Iterator[tuple[str, ...]]:
    before, after = source.costs
    if before is None or after is None:
        was, is_ = (sum(p.numel() for p in x.graph_module.parameters()) for x in (source.original, source.program))
        yield "parameters", count(was), count(is_), change(was, is_)
        return
    for name, was, is_ in (("parameters", before.params, after.params), ("MACs", before.macs, after.macs)):
        yield name, compact(was), compact(is_), change(was, is_)


def _scores(source: ReportInput) -> Iterator[tuple[str, ...]]:
    pairs = {f"{source.metric_name} ({split})": pair for split, pair in source.metrics.items()} | dict(source.figures)
    for name, pair in pairs.items():
        moved = pair.after - pair.before
        yield (
            name,
            figure(pair.before),
            figure(pair.after),
            f"{'+' if moved > 0 else ''}{figure(moved)}" if math.isfinite(moved) else "",
        )
