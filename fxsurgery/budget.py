"""What running a model takes, and what it may take."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import ConfigDict

from fxsurgery.argument_names import entry
from fxsurgery.errors import BudgetError
from fxsurgery.option_types import Range, check_fields

Limit: TypeAlias = Annotated[int | float, Range(above=0, below=10**18)] | None
"""An amount that may not be exceeded; `None` is no limit."""
_CLOSED = ConfigDict(extra="forbid")
"""A limit that does not exist is refused in a config file, too."""


Metric: TypeAlias = Literal["params", "macs", "peak_activation_bytes", "latency_ms"]
"""The metrics of a cost; MACs, activations and latency are per sample."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a model takes. The unit is in each name; MACs are for one sample."""

    params: int
    macs: int
    uncounted: tuple[str, ...] = ()
    """Operations on tensors that the MACs leave out, by name: elementwise work, pooling, norms, and `unknown_macs`."""
    unknown_macs: tuple[str, ...] = ()
    """Those of them that may take multiply-accumulates of which nobody knows how many: `macs` is then too low."""


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """What a program costs in one metric, with the bounds of its 95 % interval; the unit is the metric's.

    Example:
        >>> CostEstimate(value=2.0, low=1.75, high=2.25).width
        0.5
    """

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Self:
        """Return a cost that is known without error."""
        return cls(value=value, low=value, high=value)

    @property
    def width(self) -> float:
        """Width of the interval."""
        return self.high - self.low


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the result may take at most; several limits hold at once.

    A float up to 1.0 is a fraction of the original, anything larger (and any int) is absolute: `latency_ms=0.5` is
    half the original's latency, `latency_ms=2.5` is 2.5 milliseconds.

    Raises:
        BudgetError: no limit is given, or one is not a positive number.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    params: Limit = None
    macs: Limit = None
    latency_ms: Limit = None

    def __post_init__(self) -> None:
        check_fields(self, BudgetError)
        if all(getattr(self, f.name) is None for f in dataclasses.fields(self)):
            raise BudgetError(f"a budget needs at least one limit, e.g. {entry('budget', 'macs', 0.5)}").at("budget")

    def limits(self, original: Cost) -> Iterator[tuple[Metric, float]]:
        """Each counted limit as (`"params"` or `"macs"`, absolute amount)."""
        counted: tuple[Metric, ...] = ("params", "macs")
        for name in counted:
            if (value := getattr(self, name)) is not None:
                fraction = isinstance(value, float) and value <= 1.0
                yield name, value * getattr(original, name) if fraction else float(value)

    def latency_limit(self, original_ms: float) -> float | None:
        """The limit on latency in milliseconds; `None` where there is none.

        Args:
            original_ms: the original's latency, of which a fraction is taken.
        """
        value: Any = self.latency_ms
        if value is None:
            return None
        return value * original_ms if isinstance(value, float) and value <= 1.0 else float(value)

    def holds(self, cost: Cost, original: Cost) -> bool:
        """Whether `cost` is within every counted limit."""
        return all(getattr(cost, name) <= limit for name, limit in self.limits(original))


@dataclass(frozen=True, kw_only=True)
class Spend:
    """What a search may spend at most; the first limit that is reached ends it.

    Raises:
        BudgetError: no limit is given, or one is not a positive number.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    epochs: Limit = None
    """Passes over the training data, counted over every candidate, the warm-up among them."""
    seconds: Limit = None
    """On the clock. Such a result depends on the machine's speed. Of a run that was killed, the time since its last
    round of matches began does not count."""

    def __post_init__(self) -> None:
        check_fields(self, BudgetError)
        if self.epochs is None and self.seconds is None:
            raise BudgetError(f"a spend needs a limit, e.g. {entry('spend', 'epochs', 1000)}").at("spend")
