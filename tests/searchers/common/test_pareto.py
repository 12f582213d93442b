"""The Pareto front against brute force."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxsurgery.budget import Metric
from fxsurgery.capture import capture
from fxsurgery.searchers.common.pareto import Front, ParetoMember
from fxsurgery.searchers.common.trials import Trial
from fxsurgery.training import Score
from nonempty import nonempty

AXES: tuple[Metric, ...] = ("params", "macs", "peak_activation_bytes", "latency_ms")


ANYTHING = capture(nn.Linear(2, 2).eval(), torch.ones(1, 2))


def member(number: int, metric: float, cost: float | None, axis: Metric = "params") -> ParetoMember:
    costs = {name: value for name, value in {"params": 0, "macs": 0, axis: cost}.items() if value is not None}
    trial = Trial(number=number, parent=None, generation=0, operation="start", costs=costs)
    return ParetoMember(ANYTHING, trial, Score(metric, 0.0, 1))


def filled(pairs: list[tuple[float, float | None]], axis: Metric, *, higher: bool) -> tuple[Front, list[bool]]:
    front = Front(axis, higher_is_better=higher)
    return front, [front.add(member(i, metric, cost, axis)) for i, (metric, cost) in enumerate(pairs)]


def brute(pairs: list[tuple[float, float | None]], *, higher: bool) -> set[int]:
    """Those that no other one is at least as good as in both and better in one, nor equal to and earlier."""

    def better(a: float, b: float) -> bool:
        return a > b if higher else a < b

    def beats(i: int, j: int) -> bool:
        (m, c), (n, d) = pairs[i], pairs[j]
        if (m, c) == (n, d):
            return i < j
        return not better(n, m) and not math.isnan(m) and c is not None and d is not None and c <= d

    worst = -math.inf if higher else math.inf
    able = [i for i, (m, c) in enumerate(pairs) if not math.isnan(m) and m != worst and c is not None]
    return {j for j in able if not any(beats(i, j) for i in able if i != j)}


METRICS = st.one_of(st.sampled_from([0.0, 0.25, 0.5, 1.0, math.nan, math.inf, -math.inf]), st.floats(-1, 1))
COSTS = st.one_of(st.integers(0, 6).map(float), st.none())


@given(st.lists(st.tuples(METRICS, COSTS), max_size=12), st.sampled_from(AXES), st.booleans())
def test_the_front_is_that_of_brute_force(pairs: list, axis: Metric, higher: bool) -> None:
    front, _ = filled(pairs, axis, higher=higher)
    assert {m.trial.number for m in front.members} == brute(pairs, higher=higher)


@given(st.lists(st.tuples(METRICS, COSTS), max_size=12), st.booleans())
def test_it_is_sorted_by_cost_and_so_by_metric(pairs: list, higher: bool) -> None:
    front, _ = filled(pairs, "macs", higher=higher)
    costs = [m.trial.cost("macs") for m in front.members]
    metrics = [m.metric for m in front.members]
    assert costs == sorted(set(costs))
    assert metrics == sorted(set(metrics), reverse=not higher)


@given(st.lists(st.tuples(METRICS, COSTS), min_size=1, max_size=12), st.booleans())
def test_whether_one_was_taken_in_is_whether_it_was_there_right_after(pairs: list, higher: bool) -> None:
    _, taken = filled(pairs, "params", higher=higher)
    for i, was in nonempty(enumerate(taken)):
        assert was == (i in brute(pairs[: i + 1], higher=higher))


@given(st.lists(st.tuples(METRICS, COSTS), max_size=8), st.randoms(use_true_random=False))
def test_the_places_on_the_front_do_not_depend_on_the_order(pairs: list, rng) -> None:
    shuffled = list(pairs)
    rng.shuffle(shuffled)
    places: Callable[[Front], list] = lambda front: [(m.metric, m.trial.cost("params")) for m in front.members]  # noqa: E731
    assert places(filled(pairs, "params", higher=True)[0]) == places(filled(shuffled, "params", higher=True)[0])


def test_of_two_that_are_equal_the_first_stays() -> None:
    front, taken = filled([(0.5, 3.0), (0.5, 3.0)], "params", higher=True)
    assert taken == [True, False]
    assert [m.trial.number for m in front.members] == [0]


@pytest.mark.parametrize("metric", [math.nan, -math.inf])
def test_what_has_no_metric_is_never_on_it(metric: float) -> None:
    front, taken = filled([(metric, 1.0)], "params", higher=True)
    assert taken == [False]
    assert front.members == ()


def test_members_cannot_be_changed_from_outside() -> None:
    front, _ = filled([(0.5, 3.0)], "params", higher=True)
    assert isinstance(front.members, tuple)
