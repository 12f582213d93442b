"""Rows of tables out of the figures of trials."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.ectonas.kinds import CNN, FFNN, kind
from benchmarks.runs import Figures
from benchmarks.tables import Cell


def accuracy(found: Sequence[Figures]) -> str:
    """Test accuracy in percent, mean ± sample deviation over the trials, as the paper has it."""
    percent = [100 * figures["test"] for figures in found]
    spread = f"{statistics.stdev(percent):.1f}" if len(percent) > 1 else "?"
    return f"{statistics.fmean(percent):.1f} ± {spread}"


def mean(found: Iterable[Figures], name: str) -> float:
    """Return the mean and the deviation of one figure."""
    return statistics.fmean(figures[name] for figures in found)


def crossed(found: Iterable[Figures], start: str) -> tuple[int, int]:
    """Return how many trials from a CNN (or FFNN) ended as the other kind, and how many there are."""
    ends = [kind(figures["convolutions"]) for figures in found if kind(figures["convolutions before"]) == start]
    return sum(end != start for end in ends), len(ends)


def crossings(found: Iterable[Figures]) -> dict[str, str]:
    """Both directions, as cells by their heading."""
    found = list(found)
    return {heading: share(*crossed(found, start)) for start, heading in HEADINGS.items()}


HEADINGS = {CNN: f"{CNN} → {FFNN}", FFNN: f"{FFNN} → {CNN}"}
"""The heading of a column of crossings, by the kind that they start from."""


def share(count: int, of: int) -> str | None:
    """Format as `5 of 75 (6.7 %)`; empty if there is nothing to count."""
    return f"{count} of {of} ({count / of:.1%})".replace("%", " %") if of else None


def each(found: Sequence[Figures], names: Iterable[str]) -> dict[str, Cell]:
    """One value a seed for each figure; a plain number where there is one seed."""
    rows = dict[str, Cell]()
    for name in names:
        values = [figures[name] for figures in found if name in figures]
        if values:
            rows[name] = values if len(values) > 1 else values[0]
    return rows


def ends(found: Iterable[Figures]) -> str:
    """`2 → 3, 2 → 0`: convolutions of the start and of the end, a trial."""
    return ", ".join(f"{f['convolutions before']:.0f} → {f['convolutions']:.0f}" for f in found)


PER_NET: Mapping[str, str] = {
    "net": "",
    "mode": "",
    "test": ".4f",
    "validation": ".4f",
    "params": ",.0f",
    "MACs": ",.0f",
    "winner trained": ".1f",
    "spent": ".1f",
    "generations": ".1f",
    "candidates": ".0f",
    "duplicates": ".0f",
    "rejected": ".0f",
    "convolutions": "",
}
"""The columns of a table with a row for each net and mode."""


def per_net(net: str, mode: str, found: Sequence[Figures]) -> dict[str, Any]:
    """Such a row."""
    names = [name for name, spec in PER_NET.items() if spec]
    return {"net": net, "mode": mode, **each(found, names), "convolutions": ends(found)}
