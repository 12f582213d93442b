"""The ranking of candidates (ECToNAS, Eq. 2).

    greedy:  v        alpha = 1, and always within one kind of operation
    else:    alpha dv - (1 - alpha) dp,   dv = (v - v0) / |v0|,   dp = (p - p0) / p0

v is the validation metric, its sign turned where lower is better; p counts parameters. v0 and p0 are those of the
parent, or, at the end, of the start, since the children of two parents cannot be compared otherwise.

A budget takes precedence: a candidate that meets it ranks above all that do not, and these rank by how little they
exceed it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from fxsurgery.budget import Metric

Worth: TypeAlias = tuple[float, float]
"""Rank key: minus the fraction by which the budget is exceeded, then the fitness."""

LEAST_SCORE = 1e-12
"""Lower bound of the divisor in relative changes of the score."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The score and costs of a candidate."""

    score: float
    """The validation metric."""
    costs: Mapping[Metric, float]
    """Parameters, MACs and maybe others; for a measured cost, the upper bound of its 95 % interval."""


@dataclass(frozen=True, kw_only=True)
class Fitness:
    """Ranks candidates."""

    greediness: float
    """Alpha, from 0 to 1."""
    higher_is_better: bool
    limits: Mapping[Metric, float]
    """The limits of the budget; empty without one."""

    def greedy(self, figures: Figures) -> Worth:
        """Return the rank key by the metric alone."""
        value = figures.score if self.higher_is_better else -figures.score
        return self._worth(figures, value)

    def against(self, figures: Figures, before: Figures) -> Worth:
        """Return the rank key by the gain over `before`; by the metric alone if greediness is 1."""
        if self.greediness == 1:
            return self.greedy(figures)
        gain = (figures.score - before.score) / max(abs(before.score), LEAST_SCORE)
        params, params_before = figures.costs["params"], before.costs["params"]
        growth = (params - params_before) / max(params_before, 1)
        signed = gain if self.higher_is_better else -gain
        return self._worth(figures, self.greediness * signed - (1 - self.greediness) * growth)

    def excess(self, figures: Figures) -> float:
        """Return the fraction by which the budget is exceeded, in its worst limit; 0 if it is met."""
        shares = [figures.costs[name] / limit for name, limit in self.limits.items() if name in figures.costs]
        return max(0.0, max(shares, default=1.0) - 1)

    def _worth(self, figures: Figures, fitness: float) -> Worth:
        known = not (math.isnan(figures.score) or math.isnan(fitness))
        return (-self.excess(figures), fitness) if known else (-math.inf, -math.inf)
