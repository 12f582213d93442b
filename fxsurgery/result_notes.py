"""Verified latency of a result, and notes on it and on what was left alone."""

from collections.abc import Mapping

from fxsurgery.analysis.cost import unknown_macs_notes, unknown_operation_notes
from fxsurgery.analysis.structure import structure
from fxsurgery.preparation import PreparedRun
from fxsurgery.searchers.session import SearchOutcome


def latency_of(ready: PreparedRun, outcome: SearchOutcome) -> dict[str, float]:
    """Return the verified latency of the result; empty if the budget does not limit it."""
    if ready.latency is None or outcome.latency is None or ready.latency.limit_ms is None:
        return {}
    whole, limit_ms, found = ready.latency.original_ms, ready.latency.limit_ms, outcome.latency
    interval = {"ms": found.value, "low_ms": found.low, "high_ms": found.high}
    return {"original_ms": whole, **interval, "limit_ms": limit_ms, "batch": ready.latency.batch}


def latency_note(found: Mapping[str, float]) -> tuple[str, ...]:
    """Return a note on a verified latency; none if the budget does not limit it."""
    if not found:
        return ()
    whole = found["original_ms"]
    low, high = found["low_ms"] / whole, found["high_ms"] / whole
    times = f"latency {whole:.4g} ms before, {found['ms']:.4g} ms after, {found['limit_ms']:.4g} ms allowed"
    ratio = f"the ratio is {found['ms'] / whole:.3f} (95 % interval {low:.3f} to {high:.3f})"
    return (f"{times}; measured interleaved, {ratio}, at batch size {found['batch']}",)


def left_alone(ready: PreparedRun) -> tuple[str, ...]:
    """Return notes on what cannot shrink or be counted, and why.

    An evolutionary method reports each move that it could not make, so only what cannot be counted is listed.
    """
    uncounted = unknown_macs_notes(ready.program, ready.budget)
    if ready.method.evolves:
        return uncounted
    facts = structure(ready.program)
    total = sum(w.macs for w in facts.work) or 1.0
    fixed = sum(w.macs for w in facts.work if not any(ids.any() for ids in w.dims))
    share = (f"{fixed / total:.1%} of the MACs cannot shrink",) if fixed / total > 0.001 else ()
    return (*share, *unknown_operation_notes(ready.program), *uncounted)
