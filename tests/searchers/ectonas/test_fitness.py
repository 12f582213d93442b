"""Eq. 2 of the paper, computed by hand; a budget goes first; a NaN never wins."""

import math

import pytest

from fxsurgery import Budget
from fxsurgery.budget import Cost
from fxsurgery.searchers.ectonas.fitness import Figures, Fitness

ORIGINAL = Cost(params=1000, macs=5000)


def fitness(
    greediness: float = 1.0, *, higher: bool = True, budget: Budget | None = None, limit_ms: float | None = None
) -> Fitness:
    limits = {} if budget is None else dict(budget.limits(ORIGINAL))
    if limit_ms is not None:
        limits["latency_ms"] = limit_ms
    return Fitness(greediness=greediness, higher_is_better=higher, limits=limits)


def figures(score: float, params: int = 1000, macs: int = 5000, latency_ms: float | None = None) -> Figures:
    timed = {} if latency_ms is None else {"latency_ms": latency_ms}
    return Figures(score=score, costs={"params": params, "macs": macs, **timed})


def test_greedily_the_metric_counts_alone():
    assert fitness().greedy(figures(0.9, params=10**6)) > fitness().greedy(figures(0.8, params=1))
    assert fitness().against(figures(0.9), figures(0.1)) == fitness().greedy(figures(0.9))


def test_a_metric_that_is_better_when_lower():
    low = fitness(higher=False)
    assert low.greedy(figures(0.1)) > low.greedy(figures(0.2))
    half = fitness(0.5, higher=False)
    assert half.against(figures(0.5), figures(1.0)) > half.against(figures(1.5), figures(1.0))


@pytest.mark.parametrize("greediness", [0.0, 0.3, 0.5, 0.99])
def test_the_balance_is_that_of_the_paper(greediness: float):
    _, found = fitness(greediness).against(figures(0.84, params=700), figures(0.8, params=1000))
    assert found == pytest.approx(greediness * 0.05 + (1 - greediness) * 0.3)


def test_the_change_is_relative_to_the_parent_so_that_late_gains_count_as_much():
    half = fitness(0.5)
    early, late = half.against(figures(0.2), figures(0.1)), half.against(figures(0.95), figures(0.9))
    assert early > late


def test_who_keeps_the_budget_is_worth_more_than_who_does_not():
    limited = fitness(budget=Budget(params=0.5))
    assert limited.greedy(figures(0.1, params=500)) > limited.greedy(figures(0.99, params=501))
    assert limited.greedy(figures(0.1, params=600)) > limited.greedy(figures(0.99, params=700))
    assert limited.greedy(figures(0.2, params=100)) > limited.greedy(figures(0.1, params=500))


def test_the_limit_that_is_exceeded_most_counts():
    limited = fitness(budget=Budget(params=0.5, macs=2500, latency_ms=2.0), limit_ms=2.0)
    assert limited.excess(figures(0.5, params=500, macs=2500, latency_ms=2.0)) == 0
    assert limited.excess(figures(0.5, params=550, macs=5000, latency_ms=2.2)) == pytest.approx(1.0)
    assert limited.excess(figures(0.5, params=1, macs=1, latency_ms=3.0)) == pytest.approx(0.5)


def test_a_score_that_is_no_number_is_worth_less_than_any():
    limited = fitness(0.5, budget=Budget(params=0.5))
    worst = limited.against(figures(math.nan, params=1), figures(0.5))
    assert worst < limited.against(figures(0.0, params=10**9), figures(0.5))
    assert limited.against(figures(0.5), figures(math.nan)) == worst


def test_a_parent_that_scored_nothing_does_not_divide_by_zero():
    _, found = fitness(0.5).against(figures(0.1), figures(0.0))
    assert math.isfinite(found)
