"""What running a model takes, and what it may take."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

from fxsurgery.errors import BudgetError


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model takes. The unit is in each name; MACs are for one sample."""

    params: int
    macs: int
    uncounted: tuple[str, ...] = ()
    """Operations on tensors that the MACs leave out, by name: elementwise work, pooling, norms."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the result may take at most; several limits hold at once.

    A float up to 1.0 is a fraction of the original, anything larger (and any int) is absolute.
    `latency_ms` is always absolute.

    Raises:
        BudgetError: no limit is given, or one is not positive.
    """

    params: float | None = None
    macs: float | None = None
    latency_ms: float | None = None

    def __post_init__(self) -> None:
        limits = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        if all(value is None for value in limits.values()):
            raise BudgetError("a budget needs at least one limit, e.g. Budget(macs=0.5)")
        for name, value in limits.items():
            if value is not None and not value > 0:
                raise BudgetError(f"Budget({name}={value!r}): a limit must be greater than 0")

    def limits(self, original: Cost) -> Iterator[tuple[str, float]]:
        """Each counted limit as (`"params"` or `"macs"`, absolute amount)."""
        for name in ("params", "macs"):
            if (value := getattr(self, name)) is not None:
                fraction = isinstance(value, float) and value <= 1.0
                yield name, value * getattr(original, name) if fraction else float(value)

    def holds(self, cost: Cost, original: Cost) -> bool:
        """Whether `cost` is within every counted limit."""
        return all(getattr(cost, name) <= limit for name, limit in self.limits(original))
