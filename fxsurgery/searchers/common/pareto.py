"""The Pareto front: the networks that no other one beats in the metric without costing more.

`a` dominates `b` where it costs no more and scores no worse. Of two that are equal in both, the first stays.
"""

import math
from bisect import insort
from typing import Generic, Protocol, TypeVar

from fxsurgery.searchers.common.evolution import Axis


class Ranked(Protocol):
    """What can be on a front."""

    @property
    def metric(self) -> float:
        """On validation data."""

    def along(self, axis: Axis) -> float | None:
        """The cost on one axis; `None` where that was not measured."""


R = TypeVar("R", bound=Ranked)


class Front(Generic[R]):
    """The members that were added and are dominated by none."""

    def __init__(self, axis: Axis = "params", *, higher_is_better: bool = True) -> None:
        """Begin with nobody.

        Args:
            axis: the cost that the validation metric is set against.
            higher_is_better: of the metric.
        """
        self.axis: Axis = axis
        self._sign = 1.0 if higher_is_better else -1.0
        self._members = list[R]()

    @property
    def members(self) -> tuple[R, ...]:
        """The cheapest first, and so the worst first."""
        return tuple(self._members)

    def add(self, member: R) -> bool:
        """Take a member in unless one that is there dominates it, and drop those that it dominates.

        One whose metric is NaN or infinitely bad is never taken in, nor one whose cost was not measured.

        Returns:
            Whether it was taken in.
        """
        if not self._ranked(member) or any(self._dominates(other, member) for other in self._members):
            return False
        self._members = [other for other in self._members if not self._dominates(member, other)]
        insort(self._members, member, key=self._cost)
        return True

    def _ranked(self, member: R) -> bool:
        cost = member.along(self.axis)
        return cost is not None and not math.isnan(cost) and self._worth(member) > -math.inf

    def _dominates(self, one: R, other: R) -> bool:
        return self._cost(one) <= self._cost(other) and self._worth(one) >= self._worth(other)

    def _cost(self, member: R) -> float:
        cost = member.along(self.axis)
        return math.nan if cost is None else cost

    def _worth(self, member: R) -> float:
        return self._sign * member.metric
