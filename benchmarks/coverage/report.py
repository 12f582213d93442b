"""The table of a sweep: what each tool did with each list, how long it took, and everything that did not pass.

Times are CPU seconds. Ours for a removal is analysis + rewrite, a rival's is graph + prune; they are compared
on the models that both shrank, and so are the medians. Capture and proof stand apart.
"""

import json
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.coverage.record import GOOD, Row
from benchmarks.tables import RESULTS, Cell, Header, Table, header, markdown

PACKAGES = ("fxsurgery", "torchvision", "timm", "transformers", "torch-pruning", "torch-kirigami", "onnxruntime")
OURS = "fxsurgery"
WORK = {OURS: ("analysis", "rewrite")}
RIVAL_WORK = ("build", "prune")
VACUOUS = 1e-3
COUNTS = {
    "models": "d", "captured": "d", "pruned and right": "d", "not comparable": "d", "wrong": "d", "unproven": "d",
    "nothing removable": "d", "refused or failed": "d", "hung": "d", "params left": ".2f",
}  # fmt: skip
TIMES = {
    "list": "", "rival": "", "both": "d", "ours": ".3f", "rival's": ".3f", "ratio": ".2f", "worst ratio": ".2f",
    "worst on": "",
}  # fmt: skip
NOTES = """\
Captured: there is a graph of the model. Pruned and right: parameters were removed, and the outputs equal those of the
model with the removed entries silenced. fxsurgery: within 1e-5 relative, normalized over the survivors where a norm
runs over removed units, and a training step and a second round work too. Other tools: within 1e-4, where a comparison
is possible. Not comparable: pruned and runs, but a norm runs over removed units, or the tool does not report what it
removed. fxsurgery and Torch-Pruning remove at random; torch-kirigami follows its quick start, by magnitude to a
parameter budget. Torch-Pruning's prune stage carries one index tensor per parameter, which records the removal."""


@dataclass(frozen=True)
class Comparison:
    """CPU seconds on the models that both tools shrank: ours over the rival's."""

    models: int
    ours_s: float
    rival_s: float
    ratio: float
    worst: float
    worst_on: str


def counts(rows: Sequence[Row]) -> dict[str, Cell]:
    """One line of the first table: what became of the models of `rows`."""
    by = Counter(row.status for row in rows)
    left = [row.figures["params left"] for row in rows if row.status in GOOD]
    return {
        "models": len(rows) - by["unbuilt"],
        "captured": sum(row.captured for row in rows),
        "pruned and right": by["pass"] + by["right"],
        "not comparable": by["unchecked"],
        "wrong": by["wrong"],
        "unproven": by["unproven"],
        "nothing removable": by["nothing"],
        "refused or failed": by["refused"] + by["failed"] + by["crash"],
        "hung": by["hung"],
        "params left": statistics.median(left) if left else None,
    }


def work_s(row: Row) -> float | None:
    """CPU seconds from a graph in hand (ours) or the model (a rival's) to the smaller model."""
    return row.cpu_s(*WORK.get(row.tool, RIVAL_WORK))


def compared(ours: Sequence[Row], rival: Sequence[Row]) -> Comparison | None:
    """How the CPU seconds compare; `None` where no model was shrunk by both."""
    theirs = {row.model: work_s(row) for row in rival if row.status in GOOD}
    pairs = [(row.model, work_s(row), theirs[row.model]) for row in ours if row.status in GOOD and row.model in theirs]
    known = [(model, a, max(b, 1e-4)) for model, a, b in pairs if a is not None and b is not None]
    if not known:
        return None
    ratios = {model: a / b for model, a, b in known}
    worst = max(ratios, key=lambda model: ratios[model])
    return Comparison(
        len(known),
        statistics.median(a for _, a, _ in known),
        statistics.median(b for _, _, b in known),
        statistics.median(ratios.values()),
        ratios[worst],
        worst,
    )


def page(rows: Sequence[Row], about: Header) -> str:
    """The whole page in Markdown."""
    tools = list(dict.fromkeys(row.tool for row in rows))
    lists = list(dict.fromkeys(_list(row) for row in rows))
    lines = [
        {"list": name, "tool": tool, **counts(found)}
        for name in lists
        for tool in tools
        if (found := [row for row in rows if row.tool == tool and _list(row) == name])
    ]
    lines += [
        {"list": "all", "tool": tool, **counts([r for r in rows if r.tool == tool])} for tool in tools if lines[1:]
    ]
    table = Table("Coverage", {"list": "", "tool": "", **COUNTS}, lines, _seeds(rows), NOTES)
    return markdown(table, about) + "\n".join(["", *_settings(rows), *_sections(rows, lists, tools)]) + "\n"


def write(rows: Sequence[Row], directory: Path = RESULTS, about: Header | None = None) -> Path:
    """Write coverage.md and coverage.json; the path of the first."""
    about = about or header()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "coverage.md"
    path.write_text(page(rows, about), encoding="utf-8")
    raw = {"header": asdict(about), "versions": versions(), "rows": [asdict(row) for row in rows]}
    path.with_suffix(".json").write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    return path


def versions() -> dict[str, str]:
    """The versions of what took part, as installed."""
    return dict(_versions())


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _settings(rows: Sequence[Row]) -> Iterator[str]:
    yield f"Versions: {', '.join(f'{name} {number}' for name, number in versions().items())}."
    settings = dict.fromkeys(
        f"ratio {r.about.get('ratio')}, limit {r.about.get('limit')} CPU-s a tool, commit {r.about.get('commit')}"
        for r in rows
    )
    yield f"Runs: {'; '.join(settings)}. Every model in a process of its own, one thread."


def _sections(rows: Sequence[Row], lists: Sequence[str], tools: Sequence[str]) -> Iterator[str]:
    ours = [row for row in rows if row.tool == OURS]
    yield from _times(rows, ours, lists, [tool for tool in tools if tool != OURS])
    yield from _stages(ours)
    yield from _memory(rows)
    yield from _listing("Not passed by fxsurgery", [r for r in ours if r.status != "pass"], _why)
    slow = [r for r in ours if r.status == "pass" and (work_s(r) or 0.0) > 1.0]
    yield from _listing("Analysis and rewrite above one CPU second", slow, lambda r: f"{work_s(r):.2f}")
    yield from _listing("Export to ONNX that failed", [r for r in ours if r.onnx not in {"", "ok"}], lambda r: r.onnx)
    yield from _listing("Opaque parts that fxsurgery names", [r for r in ours if _opaque(r)], _opaque)
    yield from _listing(
        "Operations without a rule (what they touch stays as it is)",
        [r for r in ours if r.unknown],
        lambda r: ", ".join(r.unknown),
    )
    yield from _listing(
        "Above 1e-5 in float32, rounding as float64 shows",
        [r for r in ours if r.status == "pass" and any("float64" in name for name in r.figures)],
        _rounding,
    )
    yield from _listing(
        "Outputs that hardly moved when units were removed (the proof says little)",
        [r for r in ours if r.status == "pass" and (r.figures.get("effect") or 0.0) < VACUOUS],
        lambda r: f"{r.figures.get('effect')}",
    )
    for tool in tools:
        if tool != OURS:
            failed = [r for r in rows if r.tool == tool and r.status not in {"right", "unchecked"}]
            yield from _listing(f"Not pruned, or wrong, by {tool}", failed, _why)


def _times(rows: Sequence[Row], ours: Sequence[Row], lists: Sequence[str], rivals: Sequence[str]) -> Iterator[str]:
    lines = list[dict[str, Cell]]()
    for rival in rivals:
        for name in (*lists, "all"):
            mine, other = (
                [r for r in some if name in {"all", _list(r)}] for some in (ours, [r for r in rows if r.tool == rival])
            )
            if (found := compared(mine, other)) is not None:
                lines.append({
                    "list": name, "rival": rival, "both": found.models, "ours": found.ours_s,
                    "rival's": found.rival_s, "ratio": found.ratio, "worst ratio": found.worst,
                    "worst on": found.worst_on,
                })  # fmt: skip
    if lines:
        yield from ("", "## CPU seconds for a removal, where both succeed", "", *_grid(TIMES, lines))
        yield from ("", "Medians over the models; a ratio below 1 says that ours is the faster.")


def _stages(ours: Sequence[Row]) -> Iterator[str]:
    good = [row for row in ours if row.status == "pass"]
    names = list(dict.fromkeys(name for row in good for name in row.stages if name != "model"))
    lines = list[dict[str, Cell]]()
    for name in names:
        spent = {row.model: row.stages[name].cpu_s for row in good if name in row.stages}
        most = max(spent, key=lambda model: spent[model])
        lines.append({
            "stage": name, "models": len(spent), "median": statistics.median(spent.values()),
            "most": spent[most], "on": most,
        })  # fmt: skip
    if lines:
        columns = {"stage": "", "models": "d", "median": ".3f", "most": ".2f", "on": ""}
        yield from ("", "## CPU seconds of fxsurgery's stages", "", *_grid(columns, lines))
    shares = [row.figures for row in ours if "params in units" in row.figures]
    if shares:
        reach = [f"{statistics.median(f[key] for f in shares):.1%}" for key in ("params in units", "MACs in units")]
        yield from ("", f"In the median model {reach[0]} of the parameters and {reach[1]} of the MACs can shrink.")


def _memory(rows: Sequence[Row]) -> Iterator[str]:
    found = [row for row in rows if row.model == "torchvision/resnet50" and row.status in GOOD]
    if found:
        yield from ("", "## Peak resident memory of resnet50 beyond what was resident, MiB a stage", "")
        for row in found:
            stages = ", ".join(f"{name} {stage.peak_mib:.0f}" for name, stage in row.stages.items() if name != "model")
            yield f"* {row.tool}: {stages} (parameters: {row.figures['params'] * 4 / 2**20:.0f})"


def _listing(title: str, rows: Sequence[Row], say: Callable[[Row], str]) -> Iterator[str]:
    if rows:
        yield from ("", f"## {title}: {len(rows)}", "")
        yield from (f"* {row.model}: {say(row)}" for row in sorted(rows, key=lambda row: row.model))


def _why(row: Row) -> str:
    return f"{row.status}: {row.reason}" if row.reason else row.status


def _opaque(row: Row) -> str:
    return "; ".join(note for note in row.notes if "kept as a leaf" in note)


def _rounding(row: Row) -> str:
    pairs = [name for name in ("error", "second error") if f"{name} in float64" in row.figures]
    return ", ".join(f"{name} {row.figures[name]:.1e}, {row.figures[f'{name} in float64']:.1e}" for name in pairs)


def _grid(columns: dict[str, str], lines: Sequence[dict[str, Cell]]) -> Sequence[str]:
    text = markdown(Table("", columns, lines, []), Header("", "", "", 0, "")).splitlines()
    return [line for line in text if line.startswith("|")]


def _list(row: Row) -> str:
    return row.model.partition("/")[0]


def _seeds(rows: Sequence[Row]) -> list[int]:
    return sorted({int(row.about.get("seed", 0)) for row in rows})
