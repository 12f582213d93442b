"""A benchmark's table as Markdown, and its raw figures as JSON, under a header that says how they came about.

A cell with one value a seed shows as mean ± t(0.975, n - 1) s / sqrt(n), the 95 % interval of the mean for n
seeds whose sample deviation is s.
"""

import json
import math
import os
import platform
import shlex
import statistics
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
from scipy.special import stdtrit  # type: ignore[import-untyped]

RESULTS = Path(__file__).parent / "results"

Cell = str | int | float | None | Sequence[float]
"""A sequence holds one value a seed; None shows as a dash."""


@dataclass(frozen=True)
class Interval:
    """The mean over the seeds, plus or minus `half_width`: infinite for one seed, which has no spread."""

    mean: float
    half_width: float


@dataclass(frozen=True)
class Table:
    """Rows of cells by column; `columns` maps a column's heading to the format of its numbers (`".2f"`)."""

    title: str
    columns: Mapping[str, str]
    rows: Sequence[Mapping[str, Cell]]
    seeds: Sequence[int]
    notes: str = ""


@dataclass(frozen=True)
class Header:
    """How and where a table was made."""

    command: str
    date: str
    cpu: str
    cores: int
    torch: str


def interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t-interval over the seeds.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("an interval needs at least one value")
    count = len(values)
    if count == 1:
        return Interval(float(values[0]), math.inf)
    quantile = float(stdtrit(count - 1, 0.975))
    return Interval(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(count))


def header() -> Header:
    """Return the header for the current process and machine."""
    return Header(
        command=_command(sys.orig_argv),
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        cpu=_cpu(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        torch=torch.__version__,
    )


def markdown(table: Table, about: Header) -> str:
    """The page: title, header block, table, notes."""
    block = {**asdict(about), "seeds": ", ".join(map(str, table.seeds))}
    lines = [
        f"# {table.title}",
        "",
        "```text",
        *(f"{key}: {value}" for key, value in block.items()),
        "```",
        "",
    ]
    lines += [_line(table.columns), _line("---" for _ in table.columns)]
    lines += [_line(show(row.get(column), spec) for column, spec in table.columns.items()) for row in table.rows]
    if any(isinstance(cell, Sequence) and not isinstance(cell, str) for row in table.rows for cell in row.values()):
        lines += ["", "Mean over the seeds ± 95 % t-interval of the mean."]
    if table.notes:
        lines += ["", table.notes]
    return "\n".join(lines) + "\n"


def write(table: Table, name: str, directory: Path = RESULTS) -> Path:
    """Write `name`.md and `name`.json into `directory`; return the path of the Markdown page.

    Raises:
        ValueError: A row has a cell that no column shows.
    """
    if unknown := {column for row in table.rows for column in row} - set(table.columns):
        raise ValueError(f"cells without a column: {', '.join(sorted(unknown))}")
    about = header()
    directory.mkdir(parents=True, exist_ok=True)
    page = directory / f"{name}.md"
    page.write_text(markdown(table, about), encoding="utf-8")
    raw = {
        "title": table.title,
        "header": asdict(about),
        "seeds": list(table.seeds),
        "rows": list(table.rows),
    }
    page.with_suffix(".json").write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    return page


def show(cell: Cell, spec: str) -> str:
    """A cell's text, its numbers formatted by `spec`."""
    if cell is None:
        return "-"
    if isinstance(cell, str):
        return cell.replace("|", "\\|")
    if isinstance(cell, int | float):
        return format(cell, spec)
    over_seeds = interval(cell)
    if math.isinf(over_seeds.half_width):
        return f"{over_seeds.mean:{spec}} (one seed)"
    return f"{over_seeds.mean:{spec}} ± {over_seeds.half_width:{spec}}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _command(arguments: Sequence[str]) -> str:
    """Return the command line as typed in the repository, without local paths."""
    here = f"{Path.cwd()}/"
    return shlex.join(["python", *(argument.removeprefix(here) for argument in arguments[1:])])


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
