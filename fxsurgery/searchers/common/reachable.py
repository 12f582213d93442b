"""Whether a space of widths can meet a budget."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from fxsurgery.analysis.cost import cost
from fxsurgery.argument_names import assigned, command, keyword
from fxsurgery.budget import Budget, Cost, CostEstimate
from fxsurgery.errors import BudgetError
from fxsurgery.searchers.common.latency_model import LatencyLimit, Measure, ms_texts
from fxsurgery.searchers.common.widths import Space, space


def require_reachable(found: Space, budget: Budget, latency: LatencyLimit | None = None) -> None:
    """Refuse a budget that a space of widths cannot meet.

    Args:
        found: the widths to choose among.
        budget: the limits.
        latency: the limit on latency, with the way to measure it, if the budget has one.

    Raises:
        BudgetError: a limit is below the minimum of the space; the message gives that minimum.
    """
    original, smallest = cost(found.program), found.smallest()
    for name, limit in budget.limits(original):
        whole, least = getattr(original, name), getattr(smallest, name)
        if least > limit:
            raise BudgetError(
                f"{limit:,.0f} {name} ({limit / whole:.3f} of the original) cannot be reached: the least is "
                f"{least:,} ({least / whole:.3f}), {_minimum_text(found)}; "
                f"{_less_fixed(found, partial(_least, name), limit, ',.0f')}"
                f"{_further(found, name, limit)}{command('inspect')} shows what holds the "
                f"rest{_unknown_macs(name, original)}. Raise the limit, or lower {keyword('settings', 'align')}"
                f"{_percent(getattr(budget, name))}"
            )
    if budget.latency_ms is None:
        return
    if latency is None:
        raise BudgetError(f"a budget of latency_ms needs a device to measure on; pass {assigned('target', 'local')}")
    _require_reachable_latency(found, latency)


@dataclass(frozen=True)
class LatencyRange:
    """The latencies between which a space of widths can choose.

    Narrower is not always faster, and measurements are noisy: the lowest latency is that of the narrowest network or of
    the unchanged one, and a limit within its 95 % interval may be reached.

    Example:
        >>> found = LatencyRange(CostEstimate.exactly(2.0), CostEstimate(value=1.5, low=1.25, high=1.75))
        >>> found.lowest.value, found.is_above(1.2), found.is_above(1.4), found.is_close_to(1.4), found.is_close_to(1.8)
        (1.5, True, False, True, False)
    """

    unchanged: CostEstimate
    narrowest: CostEstimate

    @classmethod
    def of(cls, found: Space, measure: Measure) -> "LatencyRange":
        """Measure the unchanged network and the narrowest one."""
        return cls(measure(found.program), measure(found.smallest_program()))

    @property
    def lowest(self) -> CostEstimate:
        """The lower of the two."""
        return min(self.narrowest, self.unchanged, key=lambda estimate: estimate.value)

    def is_above(self, limit_ms: float) -> bool:
        """Return True if no network can meet a limit."""
        return self.lowest.low > limit_ms

    def is_close_to(self, limit_ms: float) -> bool:
        """Return True if the measurements do not tell whether a limit can be met."""
        return self.lowest.low <= limit_ms < self.lowest.high


def _require_reachable_latency(found: Space, latency: LatencyLimit) -> None:
    """Refuse a limit that is below the 95 % interval of the lowest latency."""
    measured = LatencyRange.of(found, latency.measure)
    if not measured.is_above(latency.limit_ms):
        return
    narrowest, unchanged = measured.narrowest, measured.unchanged
    limit, value, low, high = ms_texts(latency.limit_ms, narrowest.value, narrowest.low, narrowest.high)
    interval = f"{value} ms (95 % interval {low} to {high} ms)"
    refused = f"a latency of {limit} ms cannot be reached"
    remedy = f"Raise latency_ms, or lower {keyword('settings', 'align')}"
    if narrowest.value >= unchanged.value:
        raise BudgetError(
            f"{refused}: without any change, the network takes {unchanged.value:.4g} ms, and it is not faster "
            f"{_minimum_text(found)}: {interval}. {remedy}, or limit macs= instead"
        )
    free_ms = _less_fixed(found, lambda free: latency.measure(free.smallest_program()).value, latency.limit_ms, ".4g")
    raise BudgetError(
        f"{refused}: the least is {interval}, {_minimum_text(found)}; {free_ms}without any change, the network takes "
        f"{unchanged.value:.4g} ms. {remedy}"
    )


def _percent(given: object) -> str:
    """Return a question on an absolute limit that may have been meant as a percentage."""
    is_meant = isinstance(given, int | float) and 1 < given <= 100
    return f". {given:g} is an absolute amount: did you mean {given:g}%?" if is_meant else ""


def _least(name: str, found: Space) -> float:
    return float(getattr(found.smallest(), name))


def _minimum_text(found: Space) -> str:
    fixed = f", except what {found.constraints.arguments()} fixes" if found.constraints else ""
    return f"with every width at its smallest multiple of {found.align}{fixed}"


def _less_fixed(found: Space, least_of: Callable[[Space], float], limit: float, form: str) -> str:
    """Return a clause on the minimum without the user's constraints, if that is within the limit."""
    if not found.constraints:
        return ""
    least, names = least_of(found.unconstrained()), found.constraints.arguments()
    return f"without {names} it is {least:{form}}, so name fewer layers there; " if least <= limit else ""


def _further(found: Space, name: str, limit: float) -> str:
    """Return a clause on the method that needs no gates, if it reaches the limit."""
    if not found.exact:
        return ""
    wider = space(found.program, align=found.align, exact=False, constraints=found.constraints)
    least = getattr(wider.smallest(), name)
    return f"{assigned('method', 'prune')}, which needs no gates, reaches {least:,}; " if least <= limit else ""


def _unknown_macs(name: str, original: Cost) -> str:
    """Return a clause on the operations that a limit on MACs leaves out."""
    unknown = original.unknown_macs if name == "macs" else ()
    return f". The MACs of {', '.join(unknown)} are unknown and left out" if unknown else ""
