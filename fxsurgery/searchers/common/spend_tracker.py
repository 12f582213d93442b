"""Track the steps, reported as epochs, and the seconds that a search spends. The limit is never exceeded.

Seconds are written to the run directory at the start of each round of matches, so that a resumed run counts those of
all earlier rounds.
"""

import math
import time
from dataclasses import dataclass, field

from fxsurgery.budget import Spend
from fxsurgery.runs.records import is_amount
from fxsurgery.runs.run_directory import RunDir


@dataclass(eq=False)
class SpendTracker:
    """Accounts for training before it is done."""

    spend: Spend
    epoch: float
    """Optimizer steps in one pass over the training data."""
    run: RunDir
    reserved: int = 0
    """Steps reserved for later stages."""
    spent: int = 0
    """Optimizer steps spent so far."""
    _before: float = 0.0
    """Seconds until `_since`."""
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = time.monotonic()

    @property
    def allowed(self) -> int | None:
        """Total number of steps allowed; `None` if only the time is limited."""
        return None if self.spend.epochs is None else math.floor(self.spend.epochs * self.epoch + 1e-9)

    @property
    def left(self) -> float:
        """Number of steps left, not counting those reserved."""
        return math.inf if self.allowed is None else self.allowed - self.spent - self.reserved

    @property
    def epochs(self) -> float:
        """Epochs spent so far."""
        return self.spent / self.epoch

    def deadline(self) -> float | None:
        """Return the deadline as a `time.monotonic` value; `None` if the time is not limited."""
        if self.spend.seconds is None:
            return None
        gone = self.run.recall("seconds", lambda: self.seconds, is_amount)
        self._before, self._since = gone, time.monotonic()
        return self._since + self.spend.seconds - gone

    @property
    def seconds(self) -> float:
        """Seconds spent so far."""
        return self._before + time.monotonic() - self._since
