"""Limits on latency that no network can meet; measurements are noisy, and narrower is not always faster."""

import re

import pytest

from fxsurgery.budget import Budget, CostEstimate
from fxsurgery.errors import BudgetError
from fxsurgery.searchers.common.latency_model import LatencyLimit
from fxsurgery.searchers.common.reachable import require_reachable
from fxsurgery.searchers.common.widths import Space, space
from programs import program


@pytest.fixture(scope="module")
def widths() -> Space:
    return space(program("Plain"), align=4)


def limit(widths: Space, limit_ms: float, narrowest: CostEstimate, unchanged: float = 2.0) -> LatencyLimit:
    """A limit on a device where the unchanged program and any other take these times."""

    def measure(given) -> CostEstimate:
        return CostEstimate.exactly(unchanged) if given is widths.program else narrowest

    return LatencyLimit(measure=measure, limit_ms=limit_ms)


def interval(value: float, low: float, high: float) -> CostEstimate:
    return CostEstimate(value=value, low=low, high=high)


def message(widths: Space, latency: LatencyLimit) -> str:
    with pytest.raises(BudgetError) as raised:
        require_reachable(widths, Budget(latency_ms=latency.limit_ms), latency)
    return str(raised.value)


@pytest.mark.parametrize(("value", "low", "high"), [(2.0, 2.0, 2.0), (2.4, 2.2, 2.6), (2.1, 1.5, 2.7)])
def test_no_minimum_above_the_present_latency_is_claimed(widths, value: float, low: float, high: float):
    said = message(widths, limit(widths, 1.0, interval(value, low, high)))
    assert said.startswith(
        "a latency of 1 ms cannot be reached: without any change, the network takes 2 ms, and it is not faster with "
        f"every width at its smallest multiple of 4: {value:.4g} ms (95 % interval {low:.4g} to {high:.4g} ms)"
    )
    assert "the least is" not in said


def test_a_minimum_below_the_present_latency_comes_with_its_interval(widths):
    said = message(widths, limit(widths, 1.0, interval(1.5, 1.4, 1.6)))
    assert "the least is 1.5 ms (95 % interval 1.4 to 1.6 ms)" in said
    assert "without any change, the network takes 2 ms" in said


@pytest.mark.parametrize(
    ("limit_ms", "narrowest"),
    [(1.45, interval(1.5, 1.4, 1.6)), (1.5, interval(1.5, 1.5, 1.5)), (2.0, interval(3.0, 2.9, 3.1))],
    ids=["within the interval of the minimum", "the minimum itself", "met by the network as it is"],
)
def test_what_may_be_reached_is_not_refused(widths, limit_ms: float, narrowest: CostEstimate):
    assert require_reachable(widths, Budget(latency_ms=limit_ms), limit(widths, limit_ms, narrowest)) is None


def test_every_figure_of_a_refusal_is_consistent(widths):
    for value in (0.5, 1.0, 1.9, 2.0, 2.5):
        said = message(widths, limit(widths, 0.1, interval(value, 0.9 * value, 1.1 * value)))
        least = re.search(r"the least is ([\d.]+) ms", said)
        assert (least is None) == (value >= 2.0)
        assert least is None or float(least[1]) < 2.0
