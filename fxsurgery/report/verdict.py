"""The outcome of an optimization: a sentence, the most important numbers, and the table of before and after."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from fxsurgery.analysis.cost import cost
from fxsurgery.deploy import LatencyReport
from fxsurgery.program import Program
from fxsurgery.report.formatting import budget, change, compact, count, epochs, figure, percent, ratio
from fxsurgery.report.report_input import ReportInput

TITLES = {"dnal": "DNAL", "ectonas": "ECToNAS"}
"""Display names of methods."""
SPLITS = {"val": "validation", "val, not fine-tuned": "validation, not fine-tuned"}

milliseconds = partial(figure, digits=3)


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    name: str
    before: str
    after: str
    ratio: str
    remark: str = ""


@dataclass(frozen=True)
class Tile:
    """One number in large type."""

    value: str
    name: str
    remark: str


def title_of(source: ReportInput) -> str:
    """Return the title of the page."""
    model = source.asked.get("model")
    became = "evolved" if source.search is not None else "rebuilt" if _grew(source) else "made smaller"
    return f"{model}, {became}" if model else f"A model {became}"


def sentence(source: ReportInput) -> str:
    """Return a sentence on the request and the outcome."""
    before, after = cost(source.original), cost(source.program)
    macs, params = percent(after.macs, before.macs), percent(after.params, before.params)
    left = f"{macs} of the MACs and {params} of the parameters are left"
    if source.search is not None or _grew(source):
        what, whose = ("the winner", "the start") if source.search is not None else ("the model", "the original")
        left = f"{what} takes {macs} of the MACs and {params} of the parameters of {whose}"
    begun = _begun(source)
    return f"{_upper(f'{begun}: {left}' if begun else left)}{_scored(source)}."


def _begun(source: ReportInput) -> str:
    """Return the first half of the sentence: method, budget and spent epochs."""
    method = str(source.asked.get("method") or "")
    who, wanted = TITLES.get(method, method), budget(source.asked.get("budget"))
    asked = f"{who} was asked for {wanted}" if who else f"Asked for {wanted}"
    begun = asked if wanted else who
    if (record := source.search) is not None:
        of = "" if record.allowed is None else f" of {epochs(record.allowed)}"
        networks = f"{count(record.trained)} network{'s' if record.trained > 1 else ''}"
        spent = f"spent {epochs(record.spent)}{of} epochs on {networks}"
        begun = f"{begun} and {spent}" if wanted else f"{begun} {spent}".strip()
    if source.asked.get("data_free"):
        begun = f"without data, {begun}" if begun else "without data"
    return begun


def _grew(source: ReportInput) -> bool:
    before, after = cost(source.original), cost(source.program)
    return after.params > before.params or after.macs > before.macs


def tiles(source: ReportInput, latency: LatencyReport | None) -> tuple[Tile, ...]:
    """Return the numbers that are shown first."""
    before, after = cost(source.original), cost(source.program)
    found = [_less("MACs", before.macs, after.macs), _less("parameters", before.params, after.params)]
    if (split := _decisive(source)) is not None:
        pair = source.metrics[split]
        name = f"{SPLITS.get(split, split)} {source.metric_name}"
        found.append(Tile(figure(pair.after), name, f"{figure(pair.before)} before"))
    if latency is not None and len(latency.models) > 1:
        first, last = latency.models[0], latency.models[-1]
        times = f"{milliseconds(first.p50_ms)} to {milliseconds(last.p50_ms)} ms"
        found.append(Tile(change(1.0, last.ratio), "latency", times))
    return tuple(found)


def rows(source: ReportInput, latency: LatencyReport | None) -> tuple[Row, ...]:
    """Return the rows of the table."""
    before, after = cost(source.original), cost(source.program)
    found = [
        _row("Parameters", before.params, after.params, count),
        _row("MACs", before.macs, after.macs, count, "multiply-accumulates of one sample"),
        _row("Weights and buffers, bytes", _bytes(source.original), _bytes(source.program), count, "in memory"),
    ]
    for split, pair in source.metrics.items():
        name = f"{_upper(source.metric_name)} ({SPLITS.get(split, split)})"
        found.append(_row(name, pair.before, pair.after, figure))
    found += [_row(_upper(name), pair.before, pair.after, figure) for name, pair in source.figures.items()]
    return (*found, *(_measured(latency) if latency is not None else ()))


def _measured(latency: LatencyReport) -> Iterator[Row]:
    if len(latency.models) < 2:
        return
    first, last = latency.models[0], latency.models[-1]
    remark = f"median of {count(last.runs)}; 95 % interval of the ratio {last.ratio_low:.3f} to {last.ratio_high:.3f}"
    remark += "; the machine was busy: the times are too long, the ratio holds" if latency.contended else ""
    # The ratio is that of the rounds, which the drift of the machine does not touch.
    yield Row("Latency, ms", milliseconds(first.p50_ms), milliseconds(last.p50_ms), figure(last.ratio, 3), remark)
    yield _row("Latency, 90th percentile, ms", first.p90_ms, last.p90_ms, milliseconds)
    yield _row("ONNX file, bytes", first.bytes, last.bytes, count)


def _row(name: str, before: float, after: float, write: Callable[[float], str], remark: str = "") -> Row:
    return Row(name, write(before), write(after), ratio(before, after), remark)


def _less(name: str, before: float, after: float) -> Tile:
    return Tile(change(before, after), name, f"{compact(before)} to {compact(after)}")


def _decisive(source: ReportInput) -> str | None:
    """Return the split that counts: the test data if there are any."""
    return next((s for s in ("test", "val") if s in source.metrics), next(iter(source.metrics), None))


def _scored(source: ReportInput) -> str:
    split = _decisive(source)
    if split is None:
        return ""
    pair = source.metrics[split]
    if not (math.isfinite(pair.before) and math.isfinite(pair.after)):
        return ""
    was, is_ = figure(pair.before), figure(pair.after)
    moved = f"went from {was} to {is_}" if was != is_ else f"stayed at {is_}"
    return f", and the {SPLITS.get(split, split)} {source.metric_name} {moved}"


def _bytes(program: Program) -> int:
    """Return the bytes of the state dict, each tensor counted once."""
    state = program.graph_module.state_dict().values()
    return sum(t.nbytes for t in {(t.data_ptr(), t.shape): t for t in state}.values())


def _upper(text: str) -> str:
    return text[:1].upper() + text[1:]
