"""Costs of running a model, and limits on them."""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import ConfigDict

from fxsurgery.argument_names import entry
from fxsurgery.calls import checked_construction
from fxsurgery.errors import BudgetError, reason_of
from fxsurgery.option_text import shown
from fxsurgery.option_types import Range, check_fields

Limit: TypeAlias = Annotated[int | float, Range(above=0, below=10**18)] | None
"""Upper limit of an amount; `None` for no limit."""
BudgetLimit: TypeAlias = Annotated[int | float, Range(above=0, below=10**18)] | str | None
"""A `Limit` that may be written as text, `"50%"` or `"300M"`; a `Budget` holds the number."""
_CLOSED = ConfigDict(extra="forbid")
"""Pydantic configuration that refuses unknown limits in a config file."""
_SCALES = {"k": 1e3, "m": 1e6, "g": 1e9}
_AMOUNT = re.compile(r"([-+]?(?:\d[\d_]*\.?\d*|\.\d+)(?:e[-+]?\d+)?)\s*([%kmg]?)", re.IGNORECASE)

Metric: TypeAlias = Literal["params", "macs", "peak_activation_bytes", "latency_ms"]
"""Metrics of a cost; MACs, activations and latency are for one sample."""


def amount(given: object) -> object:
    """Return the number that a limit stands for: `0.5` and `50%` are fractions of the original, `300M` is absolute.

    Args:
        given: a number, which is returned as it is, or its text.

    Raises:
        ValueError: it is a text that holds no number, or a fraction greater than 1.

    Example:
        >>> amount("50%"), amount("1.2M"), amount("0.5"), amount(7)
        (0.5, 1200000, 0.5, 7)
    """
    if isinstance(given, bool):
        raise ValueError("a limit is a number")  # noqa: TRY004 -- what pydantic takes as a bad value
    if not isinstance(given, str):
        return given
    found = _AMOUNT.fullmatch(given.strip())
    if found is None:
        raise ValueError(f"{given!r} is not an amount; write 0.5 or 50% for half, 1200000 or 1.2M for that many")
    number, unit = found[1], found[2].lower()
    if not math.isfinite(float(number)):
        raise ValueError(f"{given!r} is too large")
    if unit == "%":
        return _share(float(number) / 100, given)
    if unit:
        return round(float(number) * _SCALES[unit])
    return int(number) if re.fullmatch(r"[-+]?[\d_]+", number) else float(number)


def _share(fraction: float, text: str) -> float:
    if fraction > 1:
        raise ValueError(f"{text!r} is more than all of it; write at most 100%")
    return fraction


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of running a model; MACs are for one sample."""

    params: int
    macs: int
    uncounted: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    """Names of operations that `macs` does not count: elementwise operations, pooling, norms, and `unknown_macs`."""
    unknown_macs: tuple[str, ...] = ()
    """Those of them that may need an unknown number of multiply-accumulates; `macs` is then too low."""


@dataclass(frozen=True, kw_only=True)
class CostEstimate:
    """Cost of a program in one metric, in the unit of the metric, with the bounds of its 95 % interval.

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


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Budget:
    """Upper limits on what the result may cost; several limits hold at once.

    A float up to 1.0 is a fraction of the original; a larger float and any int is absolute: `latency_ms=0.5` is half
    the original's latency, `latency_ms=2.5` is 2.5 milliseconds. Texts say which they are: `"50%"`, `"300M"`.

    Args:
        params: number of parameters.
        macs: multiply-accumulates for one sample.
        latency_ms: milliseconds for one sample, measured on `target` of `fxsurgery.optimize`.

    Raises:
        BudgetError: no limit is given, or one is not a positive number.

    Example:
        >>> Budget(macs="50%", params=1_000_000)
        Budget(params=1000000, macs=0.5, latency_ms=None)
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    params: BudgetLimit = None
    macs: BudgetLimit = None
    latency_ms: BudgetLimit = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if isinstance(text := getattr(self, field.name), str):
                object.__setattr__(self, field.name, _number(field.name, text))
        check_fields(self, BudgetError)
        if all(getattr(self, f.name) is None for f in dataclasses.fields(self)):
            raise BudgetError(f"a budget needs at least one limit, e.g. {entry('budget', 'macs', 0.5)}").at("budget")

    def limits(self, original: Cost) -> Iterator[tuple[Metric, float]]:
        """Yield each counted limit as (`"params"` or `"macs"`, absolute amount)."""
        counted: tuple[Metric, ...] = ("params", "macs")
        for name in counted:
            if (value := getattr(self, name)) is not None:
                fraction = isinstance(value, float) and value <= 1.0
                yield name, value * getattr(original, name) if fraction else float(value)

    def latency_limit(self, original_ms: float) -> float | None:
        """Return the limit on latency in milliseconds; `None` if there is none.

        Args:
            original_ms: latency of the original, which a fraction refers to.
        """
        value: Any = self.latency_ms
        if value is None:
            return None
        return value * original_ms if isinstance(value, float) and value <= 1.0 else float(value)

    def holds(self, cost: Cost, original: Cost) -> bool:
        """Return True if `cost` is within every counted limit."""
        return all(getattr(cost, name) <= limit for name, limit in self.limits(original))


def _number(name: str, text: str) -> object:
    try:
        return amount(text)
    except ValueError as error:
        raise BudgetError(f"{name}={shown(text)}: {reason_of(error)}; pass a number such as 0.5").at(name) from error


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Spend:
    """Budget of the search itself; the first limit that is reached ends it.

    Raises:
        BudgetError: no limit is given, or one is not a positive number.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _CLOSED

    epochs: Limit = None
    """Passes over the training data, summed over all candidates and the warm-up."""
    seconds: Limit = None
    """Wall-clock time. The result then depends on the speed of the machine. In a resumed run, the time of the round of
    matches that was interrupted does not count."""

    def __post_init__(self) -> None:
        check_fields(self, BudgetError)
        if self.epochs is None and self.seconds is None:
            raise BudgetError(f"a spend needs a limit, e.g. {entry('spend', 'epochs', 1000)}").at("spend")
