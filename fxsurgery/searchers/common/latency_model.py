"""Latency as a cost model, and how a latency budget is enforced.

A network's latency is a ratio: it is measured in turns with the original on the target, and

    latency = ratio * (the original's latency, measured once)

so that a machine that slows down in the meantime slows both. A search measures quickly and often; a network that may
be returned is measured thoroughly, before and after it is fine-tuned. The budget is met if the upper bound of the
95 % interval is within it. If it is not, the target of the search is tightened and the network is cut again:

    aim' = min(aim, latency as the search measured it) - (latency - limit) - (width of the interval)

Every measured value goes through the journal of the run directory, so a resumed run uses the same values.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from fxsurgery.argument_names import keyword
from fxsurgery.budget import Budget, CostEstimate
from fxsurgery.errors import BudgetError, ExportError
from fxsurgery.program import Program
from fxsurgery.runs.records import are_amounts
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.searchers.common.cost_oracle import CostOracle, structural_hash

ATTEMPTS = 6
"""Maximum number of cuts for one budget."""

Measure = Callable[[Program], CostEstimate]
"""The latency of a program on the target."""


def ms_texts(*values: float) -> list[str]:
    """Return latencies as text, with as many digits (at least 4) as make different ones differ.

    Example:
        >>> ms_texts(0.0374, 1.5), ms_texts(0.0374012, 0.0374019)
        (['0.0374', '1.5'], ['0.037401', '0.037402'])
    """
    different = len({repr(float(value)) for value in values})
    texts = ([f"{value:.{digits}g}" for value in values] for digits in range(4, 18))
    return next(found for found in texts if len(set(found)) == different)


class LatencyTimer(Protocol):
    """Measures programs in turns with the original on a target."""

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
    """The budget, in milliseconds."""
    aim_ms: float | None = None
    """The target of the search, in milliseconds, if it is tighter than the limit."""

    def holds(self, program: Program) -> bool:
        """Return True if a program is within the search's target, by the upper bound of its interval."""
        return self.measure(program).high <= (self.limit_ms if self.aim_ms is None else self.aim_ms)


@dataclass(eq=False, kw_only=True)
class LatencyModel:
    """The latency of programs relative to that of an original."""

    timer: LatencyTimer
    original: Program
    budget: Budget | None = None
    run: RunDir = field(default_factory=RunDir)

    readings = 3
    """The ratio and the bounds of its interval."""

    @cached_property
    def costs(self) -> CostOracle:
        """The costs of programs, including their latency on the target."""
        return CostOracle(meters={"latency_ms": self}, run=self.run)

    @property
    def original_ms(self) -> float:
        """Latency of the original in milliseconds, measured once."""
        return self._original_latency[0]

    @property
    def batch(self) -> int:
        """The batch size of all measurements: 1, unless the model only takes another one."""
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
                f"a budget of latency_ms needs the model as an ONNX file: {error}. Limit macs or params instead"
            ) from error

    @property
    def limit_ms(self) -> float | None:
        """The limit of the budget in milliseconds; `None` if it has none on latency."""
        if self.budget is None or self.budget.latency_ms is None:
            return None
        return self.budget.latency_limit(self.original_ms)

    @property
    def limit(self) -> LatencyLimit | None:
        """The limit together with the way to measure against it; `None` if the budget has none on latency."""
        return None if self.limit_ms is None else LatencyLimit(measure=self.measure, limit_ms=self.limit_ms)

    def measure(self, program: Program) -> CostEstimate:
        """Return the latency of a program, measured quickly, and once for each structure."""
        return self.costs.cost(program, "latency_ms")

    def verify(self, program: Program) -> CostEstimate:
        """Return the latency of a program, measured thoroughly, anew at each call."""
        if self._is_original(program):
            return CostEstimate.exactly(self.original_ms)
        measured = self.run.recall("latency check", lambda: [*self.timer.ratio(program, thorough=True)], are_amounts(3))
        return self.estimate(measured)

    def read(self, program: Program) -> tuple[float, float, float]:
        """Measure the latency of a program relative to the original's, quickly."""
        return (1.0, 1.0, 1.0) if self._is_original(program) else self.timer.ratio(program, thorough=False)

    def estimate(self, reading: Sequence[float]) -> CostEstimate:
        """Return the latency in milliseconds from a ratio to the original and its bounds."""
        value, low, high = (self.original_ms * share for share in reading)
        return CostEstimate(value=value, low=low, high=high)

    def missed(self, found: CostEstimate) -> str:
        """Return the message for a budget that is not met; `found` is the nearest latency that was verified."""
        limit, value, low, high = ms_texts(self.limit_ms or 0.0, found.value, found.low, found.high)
        return (
            f"a latency of {limit} ms (original: {self.original_ms:.4g} ms) is not met: measured in turns "
            f"with the original, the result takes {value} ms (95 % interval {low} to "
            f"{high} ms), and further cuts did not bring it within the limit. Raise latency_ms above "
            f"{high}, lower {keyword('settings', 'align')}, or limit macs instead"
        )

    def _is_original(self, program: Program) -> bool:
        return structural_hash(program) == self._original

    @cached_property
    def _original(self) -> str:
        return structural_hash(self.original)


def hold(
    model: LatencyModel | None,
    cut: Callable[[LatencyLimit | None], Program],
    finish: Callable[[Program, int], Program],
) -> CostEstimate | None:
    """Cut and fine-tune a network until the result meets the latency budget.

    Args:
        model: measures latency and holds the limit; `None` if there is none.
        cut: returns the network for a limit; for a tighter aim a smaller one, or the same if there is none.
        finish: fine-tunes a network and returns the result; also takes the number of the attempt, from 1.

    Returns:
        The verified latency of the last result of `finish`; `None` if the budget has no limit on latency.

    Raises:
        BudgetError: no network meets the budget; the message gives the latency of the last one.
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
        # It must also meet the limit when measured after the expensive fine-tuning: leave half the interval.
        is_last = attempt == ATTEMPTS or structural_hash(program) == last
        spare = 0.0 if is_last else found.width / 2
        if found.high + spare <= limit.limit_ms:
            finished += 1
            found = model.verify(finish(program, finished))
            if found.high <= limit.limit_ms:
                return found
        if is_last:
            raise BudgetError(model.missed(found))
        last = structural_hash(program)
        aim = min(aim, model.measure(program).high) - max(found.value - limit.limit_ms, 0.0) - found.width
