"""The Pareto front: the networks that no other one beats in the metric without costing more.

`a` dominates `b` if it costs no more and scores no worse. Of two that are equal in both, the first one stays.
"""

import math
from bisect import insort
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from torch import fx
from typing_extensions import override

from fxsurgery.analysis.cost import cost
from fxsurgery.budget import Cost, Metric
from fxsurgery.program import Program
from fxsurgery.searchers.common.trials import Trial, trial_from_plain, trial_to_plain
from fxsurgery.training import Score


@dataclass(frozen=True, eq=False, repr=False)
class ParetoMember:
    """A network on the Pareto front."""

    program: Program
    trial: Trial
    """Its record at these weights."""
    score: Score
    """Validation score of these weights."""

    @override
    def __repr__(self) -> str:
        costs = f"{self.trial.cost('params'):,} parameters, {self.trial.cost('macs'):,} MACs"
        return f"<ParetoMember: metric {self.metric:.4g}, {costs}>"

    @property
    def model(self) -> fx.GraphModule:
        """The network: a plain `torch.nn.Module` in eval mode."""
        return self.program.graph_module

    @property
    def metric(self) -> float:
        """Validation metric of these weights."""
        return self.score.metric

    @property
    def cost(self) -> Cost:
        """Its parameters and MACs."""
        return cost(self.program)

    @property
    def latency_ms(self) -> float | None:
        """Latency for one sample; `None` if it was not measured."""
        return self.trial.cost("latency_ms")

    def along(self, axis: Metric) -> float | None:
        """Return its cost in one metric; `None` if that was not measured."""
        return self.trial.cost(axis)


def member_to_plain(member: ParetoMember) -> dict[str, Any]:
    """Return all of a member but its program as plain JSON."""
    return {"trial": trial_to_plain(member.trial), "score": dict(vars(member.score))}


def member_from_plain(plain: Mapping[str, Any], program: Program) -> ParetoMember:
    """Return the member that `member_to_plain` wrote, with its program.

    Raises:
        KeyError: something is missing.
        TypeError: something is missing or of another type.
    """
    return ParetoMember(program, trial_from_plain(plain["trial"]), Score(**plain["score"]))


class Ranked(Protocol):
    """An entry of a front."""

    @property
    def metric(self) -> float:
        """The validation metric."""

    def along(self, axis: Metric) -> float | None:
        """Return the cost in one metric; `None` if that was not measured."""


R = TypeVar("R", bound=Ranked)


class Front(Generic[R]):
    """The members that were added and are not dominated."""

    def __init__(self, axis: Metric = "params", *, higher_is_better: bool = True) -> None:
        """Create an empty front.

        Args:
            axis: the cost that is traded off against the validation metric.
            higher_is_better: whether a higher metric is better.
        """
        self.axis: Metric = axis
        self._sign = 1.0 if higher_is_better else -1.0
        self._members = list[R]()

    @property
    def members(self) -> tuple[R, ...]:
        """The members, cheapest (and so worst) first."""
        return tuple(self._members)

    def add(self, member: R) -> bool:
        """Add a member unless an existing one dominates it, and drop those that it dominates.

        A member whose metric is NaN or infinitely bad, or whose cost was not measured, is never added.

        Returns:
            Whether it was added.
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
