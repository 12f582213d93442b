"""What a search has spent of what it may: steps, told as epochs, and seconds. It is never overshot.

Seconds go through the run directory whenever a round of matches begins, so that a run that was killed and goes on has
those of all rounds before.
"""

import math
import time
from dataclasses import dataclass, field

from fxsurgery.budget import Spend
from fxsurgery.runs.records import is_amount
from fxsurgery.runs.run_directory import RunDir


@dataclass(eq=False)
class SpendTracker:
    """Pays for training, before it is done."""

    spend: Spend
    epoch: float
    """Optimizer steps that go once through the training data."""
    run: RunDir
    reserved: int = 0
    """Steps that are kept for later."""
    spent: int = 0
    """Steps."""
    _before: float = 0.0
    """Seconds until `_since`."""
    _since: float = field(init=False)

    def __post_init__(self) -> None:
        self._since = time.monotonic()

    @property
    def allowed(self) -> int | None:
        """Steps that may be spent in all; `None` where only the time is limited."""
        return None if self.spend.epochs is None else math.floor(self.spend.epochs * self.epoch + 1e-9)

    @property
    def left(self) -> float:
        """Steps that may still be spent, what is reserved aside."""
        return math.inf if self.allowed is None else self.allowed - self.spent - self.reserved

    @property
    def epochs(self) -> float:
        """Spent so far."""
        return self.spent / self.epoch

    def deadline(self) -> float | None:
        """When the time will be up, by `time.monotonic`; `None` where it does not matter."""
        if self.spend.seconds is None:
            return None
        gone = self.run.recall("seconds", lambda: self.seconds, is_amount)
        self._before, self._since = gone, time.monotonic()
        return self._since + self.spend.seconds - gone

    @property
    def seconds(self) -> float:
        """Gone until now."""
        return self._before + time.monotonic() - self._since
