"""The report page: one HTML file with inline style and drawings, without network access and scripts."""

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
"""Number of layers up to which all parts of the model are unfolded."""
MOST_NAMED = 6
"""Number of stages up to which their names stand under the charts; more get numbers and a list."""
MOST_MEMBERS = 12
"""Number of networks of a Pareto front up to which its table is unfolded."""
KEPT = "\n\t" + "".join(map(chr, range(0xD800, 0xE000)))
"""Characters that a page may contain, unlike a terminal; `write` encodes halves of surrogate pairs."""
SHOWN_SPEC = 200
"""Number of characters of a pass that are shown while it is folded."""


@checked(RunError)
def render(source: ReportInput, *, latency: LatencyReport | None = None, title: str = "", date: str = "") -> str:
    """Return the page, which depends on the arguments only.

    Args:
        source: a `fxsurgery.Result`.
        latency: what `Result.benchmark` gave.
        title: name of the model; the name of its class by default.
        date: date that the page shows; none by default.
    """
    found = stages(source.history)
    every = layers(source.original, source.program)
    original = source.metrics.get("val")
    return _environment().get_template("page.html").render(
        title=title or title_of(source),
        sentence=sentence(source),
        tiles=tiles(source, latency),
        rows=rows(source, latency),
        latency=latency,
        layers=every,
        groups=grouped(every),
        widest=max((layer.widest for layer in every), default=1),
        unfolded=len(every) <= OPEN_LAYERS,
        stages=found,
        most_named=MOST_NAMED,
        curves=curves(found, source.metric_name, None if original is None else original.before),
        histogram=histogram(source.gates),
        notes=source.notes,
        passes=source.program.log,
        shown_spec=SHOWN_SPEC,
        circumstances=tuple(_circumstances(source, latency, date)),
        metric_name=source.metric_name,
        **_evolved(source),
    )  # fmt: skip


def write(
    source: ReportInput, path: str | Path, *, latency: LatencyReport | None = None, title: str = "", date: str = ""
) -> Path:
    """Write the page to a file atomically; the arguments are those of `render`.

    Raises:
        RunError: the file cannot be written.
    """
    path = Path(path)
    page = render(source, latency=latency, title=title, date=date)
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
    """Return a value for the page, which then escapes it."""
    return printable(value, KEPT) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _evolved(source: ReportInput) -> dict[str, Any]:
    """Return the template values of an evolutionary search."""
    record = source.search
    if record is None:
        return {"evolved": False}
    return {
        "evolved": True,
        "most_members": MOST_MEMBERS,
        "lineage": lineage(record, source.metric_name),
        "scatter": scatter(record, source.pareto, source.metric_name),
        "timed": any(member.latency_ms is not None for member in source.pareto),
        "generations": generations(record),
        "refusals": refusals(record),
        "rejected": sum(record.rejected.values()),
        "mishaps": mishaps(record),
    }


def _circumstances(source: ReportInput, latency: LatencyReport | None, date: str) -> Iterator[tuple[str, str]]:
    """Yield settings, environment and versions."""
    if date:
        yield "date", date
    if "seed" not in source.asked:
        yield "seed", str(source.seed)
    for name, value in source.asked.items():
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
