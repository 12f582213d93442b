"""Formats of numbers: counts are exact, measured values have four digits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
PER_CENT = "\N{NO-BREAK SPACE}%"
UNITS = {"macs": "MACs", "params": "parameters", "latency_ms": "ms"}


def count(value: float) -> str:
    """Return a whole number with commas."""
    return f"{value:,.0f}".replace("-", MINUS)


def epochs(value: float) -> str:
    """Return a number of epochs to a tenth."""
    return f"{value:,.1f}".removesuffix(".0")


def figure(value: float, digits: int = 4) -> str:
    """Return a measured number with `digits` decimals, or a dash if it is not finite."""
    return f"{value:,.{digits}f}".replace("-", MINUS) if math.isfinite(value) else DASH


def short(value: float, digits: int = 4) -> str:
    """Return a number for an axis in `digits` significant digits: `0.05`, `1.2k`, `3M`."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            scale = 1e3 if suffix == "k" else size
            return f"{value / scale:.{digits}g}{suffix}".replace("-", MINUS)
    return f"{value:.{digits}g}".replace("e-0", "e-").replace("-", MINUS)


def compact(value: float) -> str:
    """Return a count in three digits: `23.5 M`."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {suffix}"
    return count(value)


def percent(part: float, whole: float) -> str:
    """Return a fraction in percent: `49.9 %`; a dash if it is undefined."""
    return f"{100 * part / whole:.1f}{PER_CENT}" if whole and math.isfinite(part / whole) else DASH


def change(before: float, after: float) -> str:
    """Return the relative change of a count in percent, with its sign."""
    if not before or not math.isfinite(after / before):
        return DASH
    moved = 100 * (after / before - 1)
    # What is nearly all gone is not all gone.
    digits = next((d for d in range(1, 9) if not after or round(moved, d) > -100), 9)
    return f"{'+' if moved > 0 else MINUS}{abs(moved):.{digits}f}{PER_CENT}" if round(moved, digits) else f"0{PER_CENT}"


def ratio(before: float, after: float) -> str:
    """Return `after / before`, or a dash if it is undefined."""
    return figure(after / before, 3) if before else DASH


def enumerated(parts: Sequence[str]) -> str:
    """Return an enumeration: `a`, `a and b`, `a, b and c`."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def budget(asked: object) -> str:
    """Return a budget in words: `at most 50 % of the MACs and 12 ms`; an empty string without a budget."""
    if not isinstance(asked, Mapping):
        return "" if asked is None else str(asked)
    limits = [_limit(name, value) for name, value in asked.items() if value is not None]
    return f"at most {enumerated(limits)}" if limits else ""


def _limit(name: str, value: Any) -> str:  # noqa: ANN401 -- what a JSON file holds
    unit = UNITS.get(name, name)
    if not isinstance(value, int | float):
        return f"{value} {unit}"
    if isinstance(value, float) and value <= 1.0:
        return f"{100 * value:.4g}{PER_CENT} of the {'latency' if name == 'latency_ms' else unit}"
    return f"{value:,g} {unit}" if name == "latency_ms" else f"{value:,.0f} {unit}"
