"""The page: one HTML file with its style and drawings in it. It asks the network for nothing and runs no script."""

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxsurgery.deploy import LatencyReport
from fxsurgery.errors import RunError
from fxsurgery.files import write_whole
from fxsurgery.option_types import checked
from fxsurgery.printable import printable
from fxsurgery.report import formatting
from fxsurgery.report.curves import curves, stages
from fxsurgery.report.gate_chart import histogram
from fxsurgery.report.generations import generations, mishaps, refusals
from fxsurgery.report.layer_table import grouped, layers
from fxsurgery.report.lineage_chart import lineage
from fxsurgery.report.report_input import ReportInput
from fxsurgery.report.scatter import scatter
from fxsurgery.report.verdict import rows, sentence, tiles, title_of

if TYPE_CHECKING:
    from jinja2 import Environment

OPEN_LAYERS = 60
"""Up to so many layers, all parts of the model are shown unfolded."""
MOST_NAMED = 6
"""Stages whose names stand under the charts; more get numbers, and a list."""
MOST_MEMBERS = 12
"""Of a front, whose table is shown unfolded."""
KEPT = "\n\t" + "".join(map(chr, range(0xD800, 0xE000)))
"""Characters that a page may hold, unlike a terminal; `write` gives halves of surrogate pairs a form of their own."""
SHOWN_SPEC = 200
"""Characters of a pass that are shown before it is unfolded."""


@checked(RunError)
def render(told: ReportInput, *, latency: LatencyReport | None = None, title: str = "", date: str = "") -> str:
    """The page, the same for the same arguments.

    Args:
        told: a `fxsurgery.Result`.
        latency: what `Result.benchmark` gave.
        title: what the model is called; the name of its class unless said.
        date: what the page says of when it was made; nothing unless said.
    """
    found = stages(told.history)
    every = layers(told.original, told.program)
    original = told.metrics.get("val")
    return _environment().get_template("page.html").render(
        title=title or title_of(told),
        sentence=sentence(told),
        tiles=tiles(told, latency),
        rows=rows(told, latency),
        latency=latency,
        layers=every,
        groups=grouped(every),
        widest=max((layer.widest for layer in every), default=1),
        unfolded=len(every) <= OPEN_LAYERS,
        stages=found,
        most_named=MOST_NAMED,
        curves=curves(found, told.metric_name, None if original is None else original.before),
        histogram=histogram(told.gates),
        notes=told.notes,
        passes=told.program.log,
        shown_spec=SHOWN_SPEC,
        circumstances=tuple(_circumstances(told, latency, date)),
        metric_name=told.metric_name,
        **_evolved(told),
    )  # fmt: skip


def write(
    told: ReportInput, path: str | Path, *, latency: LatencyReport | None = None, title: str = "", date: str = ""
) -> Path:
    """Write the page to a file, whole or not at all; the arguments are those of `render`.

    Raises:
        RunError: the file cannot be written.
    """
    path = Path(path)
    page = render(told, latency=latency, title=title, date=date)
    # A name from a graph may hold what UTF-8 cannot: half of a surrogate pair.
    write_whole(path, page.encode("utf-8", "xmlcharrefreplace"))
    return path


def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415 -- slow to import

    made = Environment(
        loader=PackageLoader("fxsurgery.report"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["count"] = formatting.count
    made.globals["change"] = formatting.change
    return made


def _shown(value: object) -> object:
    """A value as it goes into the page, which then escapes it."""
    return printable(value, KEPT) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _evolved(told: ReportInput) -> dict[str, Any]:
    """What the page shows of an evolution."""
    record = told.search
    if record is None:
        return {"evolved": False}
    return {
        "evolved": True,
        "most_members": MOST_MEMBERS,
        "lineage": lineage(record, told.metric_name),
        "scatter": scatter(record, told.pareto, told.metric_name),
        "timed": any(member.latency_ms is not None for member in told.pareto),
        "generations": generations(record),
        "refusals": refusals(record),
        "rejected": sum(record.rejected.values()),
        "mishaps": mishaps(record),
    }


def _circumstances(told: ReportInput, latency: LatencyReport | None, date: str) -> Iterator[tuple[str, str]]:
    """Under what circumstances this came about."""
    if date:
        yield "date", date
    if "seed" not in told.asked:
        yield "seed", str(told.seed)
    for name, value in told.asked.items():
        if value is not None and value != {}:
            yield from _settings(str(name), value)
    if latency is not None:
        yield "latency measured on", f"{latency.device}, {latency.threads} thread(s), {latency.runtime}, {latency.date}"
    versions = f"PyTorch {torch.__version__}, Python {platform.python_version()}"
    yield "this page by", f"fxsurgery {version('fxsurgery')}, {versions}"


def _settings(name: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 -- what a JSON file holds
    if not isinstance(value, Mapping):
        yield name, str(value)
        return
    for key, inner in value.items():
        if inner is not None:
            yield from _settings(f"{name}.{key}", inner)
