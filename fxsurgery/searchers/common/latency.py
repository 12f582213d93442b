"""Latency as a cost model, and how a budget of latency is held.

A network's latency is a ratio: it is measured in turns with the original on the target, and

    latency = ratio * (the original's latency, measured once)

so that a machine that slows down meanwhile slows both. A search measures quickly and often; what may be returned is
measured thoroughly, before it is fine-tuned and as it is afterwards. The budget holds where the upper bound of the
95 % interval is within it. Where it is not, the search's own target is tightened and the network is cut again:

    aim' = min(aim, latency as the search measured it) - (latency - limit) - (width of the interval)

Every measured value goes through the journal of the run directory, so a resumed run believes what was measured.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from fxsurgery.budget import Budget, LatencyEstimate
from fxsurgery.errors import BudgetError, ExportError
from fxsurgery.program import Program
from fxsurgery.runs.records import are_amounts
from fxsurgery.runs.run_directory import RunDir

ATTEMPTS = 6
"""How often a network is cut for one budget, at most."""

Measure = Callable[[Program], LatencyEstimate]
"""The latency of a program on the target."""


class Timer(Protocol):
    """Measures programs against the original, on a target."""

    @property
    def original_latency(self) -> tuple[float, int]:
        """The original's latency in milliseconds, and the batch size that it was measured at."""

    def ratio(self, program: Program, *, thorough: bool) -> tuple[float, float, float]:
        """The latency of a program over the original's, with the bounds of its 95 % interval."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LatencyLimit:
    """A limit on latency, and how to measure against it."""

    measure: Measure
    limit_ms: float
    """What is allowed."""
    aim_ms: float | None = None
    """The target of the search, where it is tighter."""

    def holds(self, program: Program) -> bool:
        """Whether a program is within the search's target, by the upper bound of its interval."""
        return self.measure(program).high_ms <= (self.limit_ms if self.aim_ms is None else self.aim_ms)


@dataclass(eq=False, kw_only=True)
class LatencyModel:
    """The latency of programs relative to that of an original."""

    timer: Timer
    original: Program
    budget: Budget | None = None
    run: RunDir = field(default_factory=RunDir)
    _known: dict[str, LatencyEstimate] = field(default_factory=dict)
    """What `measure` gave, by structure."""

    @property
    def original_ms(self) -> float:
        """Of the original, measured once."""
        return self._original_latency[0]

    @property
    def batch(self) -> int:
        """The batch size at which all is measured: 1, unless the model takes another one only."""
        return self._original_latency[1]

    @cached_property
    def _original_latency(self) -> tuple[float, int]:
        ms, batch = self.run.recall("latency of the original", self._timed, are_amounts(2))
        return float(ms), int(batch)

    def _timed(self) -> list[float]:
        try:
            return [*self.timer.original_latency]
        except ExportError as error:
            if self.budget is None or self.budget.latency_ms is None:
                raise
            raise ExportError(
                f"a budget of latency_ms needs the model as an ONNX file: {error}. Limit macs= or params= instead"
            ) from error

    @property
    def limit_ms(self) -> float | None:
        """What the budget allows; `None` where it does not limit the latency."""
        if self.budget is None or self.budget.latency_ms is None:
            return None
        return self.budget.latency_limit(self.original_ms)

    @property
    def limit(self) -> LatencyLimit | None:
        """The same, to search by."""
        return None if self.limit_ms is None else LatencyLimit(measure=self.measure, limit_ms=self.limit_ms)

    def measure(self, program: Program) -> LatencyEstimate:
        """Quickly, once for each structure."""
        key = _structure(program)
        if key not in self._known:
            self._known[key] = self._measured(program, "latency", thorough=False)
        return self._known[key]

    def verify(self, program: Program) -> LatencyEstimate:
        """Thoroughly, anew each time."""
        return self._measured(program, "latency check", thorough=True)

    def missed(self, found: LatencyEstimate) -> str:
        """What to tell where the budget is not held; `found` is the nearest that was verified."""
        return (
            f"a latency of {self.limit_ms:.4g} ms (original: {self.original_ms:.4g} ms) is not held: measured in turns "
            f"with the original, the result takes {found.ms:.4g} ms (95 % interval {found.low_ms:.4g} to "
            f"{found.high_ms:.4g} ms), and cutting again did not bring it within. Raise latency_ms above "
            f"{found.high_ms:.4g}, lower align=, or limit macs= instead"
        )

    def _measured(self, program: Program, name: str, *, thorough: bool) -> LatencyEstimate:
        whole = self.original_ms
        if _structure(program) == self._original:
            return LatencyEstimate.exactly(whole)
        ratio, low, high = self.run.recall(
            name, lambda: [*self.timer.ratio(program, thorough=thorough)], are_amounts(3)
        )
        return LatencyEstimate(ms=whole * ratio, low_ms=whole * low, high_ms=whole * high)

    @cached_property
    def _original(self) -> str:
        return _structure(self.original)


def hold(
    model: LatencyModel | None,
    cut: Callable[[LatencyLimit | None], Program],
    finish: Callable[[Program, int], Program],
) -> LatencyEstimate | None:
    """Cut and finish a network such that what is returned holds the budget of latency.

    Args:
        model: how latency is measured, and what is allowed.
        cut: gives the network for a limit. A tighter aim gives a smaller network, or the same where none is smaller.
        finish: fine-tunes it, for the given time; gives what would be returned.

    Returns:
        The verified latency of what `finish` gave last; `None` where the budget has no limit on latency.

    Raises:
        BudgetError: no network that was cut holds the budget; it says by how much the last one misses.
    """
    limit = None if model is None else model.limit
    if model is None or limit is None:
        finish(cut(None), 1)
        return None
    attempt, finished, last, aim = 0, 0, "", limit.limit_ms
    while True:
        attempt += 1
        program = cut(replace(limit, aim_ms=aim))
        found = model.verify(program)
        # Measured again after the fine-tuning, which costs much more, it shall hold as well: leave half the interval.
        is_last = attempt == ATTEMPTS or _structure(program) == last
        spare = 0.0 if is_last else found.width_ms / 2
        if found.high_ms + spare <= limit.limit_ms:
            finished += 1
            found = model.verify(finish(program, finished))
            if found.high_ms <= limit.limit_ms:
                return found
        if is_last:
            raise BudgetError(model.missed(found))
        last = _structure(program)
        aim = min(aim, model.measure(program).high_ms) - max(found.ms - limit.limit_ms, 0.0) - found.width_ms


def _structure(program: Program) -> str:
    """A hash of all that latency depends on: the graph and the shapes and types of its tensors."""
    model = program.graph_module
    tensors = [(name, tuple(x.shape), x.dtype) for name, x in (*model.named_parameters(), *model.named_buffers())]
    return hashlib.sha256(f"{program.text()}{tensors}".encode()).hexdigest()
