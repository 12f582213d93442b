"""Made-up devices: a program's latency follows from its MACs, and nobody looks at the clock."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from fxsurgery.analysis.cost import cost
from fxsurgery.budget import CostEstimate
from fxsurgery.program import Program
from fxsurgery.searchers.common.latency_model import LatencyLimit, Measure


def milliseconds(program: Program) -> float:
    """A device on which a thousand MACs take a millisecond, and the program itself another one."""
    return 1.0 + cost(program).macs / 1e3


def exact(latency_ms: Callable[[Program], float]) -> Measure:
    """Measures without error."""
    return lambda program: CostEstimate.exactly(latency_ms(program))


def limited(limit_ms: float) -> LatencyLimit:
    """A limit on a device without error."""
    return LatencyLimit(measure=exact(milliseconds), limit_ms=limit_ms)


@dataclass
class Device:
    """A timer as `fxsurgery.deploy.Timer` is one, of `milliseconds`.

    Each measurement is off by noise of its own, which its interval tells; beside, a thorough one may find every
    network but the original to be slower than the quick one does.
    """

    original: Program
    noise: float = 0.0
    """The largest relative error of a measurement, and half the relative width of its interval."""
    bias: float = 1.0
    """Of thorough measurements, relative to quick ones."""
    seed: int = 0
    thorough: list[tuple[Program, float, float]] = field(default_factory=list)
    """What was measured thoroughly: program, true latency in milliseconds, and the interval's upper bound."""
    quick: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    @property
    def original_ms(self) -> float:
        return milliseconds(self.original)

    @property
    def original_latency(self) -> tuple[float, int]:
        return self.original_ms, 1

    def ratio(self, program: Program, *, thorough: bool) -> tuple[float, float, float]:
        true = milliseconds(program) * (self.bias if thorough else 1.0) / self.original_ms
        found = true * (1.0 + self._random.uniform(-self.noise, self.noise))
        low, high = found * (1 - self.noise), found * (1 + self.noise)
        if thorough:
            self.thorough.append((program, true * self.original_ms, high * self.original_ms))
        self.quick += not thorough
        return found, low, high
