"""Limits on latency that no network can meet; measurements are noisy, and narrower is not always faster."""

import re

import pytest

from fxsurgery.budget import Budget, CostEstimate
from fxsurgery.errors import BudgetError
from fxsurgery.plan import CostRange, _latencies
from fxsurgery.program import Program
from fxsurgery.searchers.common.latency_model import LatencyLimit, LatencyModel
from fxsurgery.searchers.common.reachable import LatencyRange, require_reachable
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


def test_a_limit_below_the_interval_is_printed_apart_from_it(widths):
    said = message(widths, limit(widths, 0.0374001, interval(0.0374021, 0.0374011, 0.0374031)))
    assert "a latency of 0.0374 ms cannot be reached" in said
    assert "0.037402 ms (95 % interval 0.037401 to 0.037403 ms)" in said


@pytest.mark.parametrize("limit_ms", [0.5, 1.0, 1.39, 1.41, 1.5, 1.6, 1.7, 2.5])
def test_a_plan_and_a_refusal_use_one_comparison(widths, limit_ms: float):
    asked = limit(widths, limit_ms, interval(1.5, 1.4, 1.6))
    found = LatencyRange.of(widths, asked.measure)
    if found.is_above(limit_ms):
        assert "the least is 1.5 ms" in message(widths, asked)
        assert limit_ms < 1.4
    else:
        require_reachable(widths, Budget(latency_ms=limit_ms), asked)
        assert found.is_close_to(limit_ms) == (limit_ms < 1.6)


def test_a_plan_names_the_interval_and_prints_what_differs_differently():
    near = CostRange("latency_ms", 0.05, 0.0374012, 0.0374019, (0.0371, 0.0377))
    assert str(near) == (
        "latency_ms: 0.05 now, 0.037401 at the least (95 % interval 0.0371 to 0.0377), budget 0.037402"
    )
    equal = CostRange("latency_ms", 0.05, 0.0374, 0.0374)
    assert equal.figures() == ("0.05", "0.0374", "0.0374")
    assert CostRange("macs", 2000.0, None, 1000.0).figures() == ("2,000", "", "1,000")


class Steady:
    """A device on which the original takes 2 ms and anything else three quarters of it, roughly."""

    original_latency = (2.0, 1)

    def ratio(self, program: Program, *, thorough: bool) -> tuple[float, float, float]:
        del program, thorough
        return 0.75, 0.7, 0.8


@pytest.mark.parametrize(("limit_ms", "is_noted"), [(1.45, True), (1.5, True), (1.7, False)])
def test_a_plan_warns_of_a_budget_within_the_interval_of_the_minimum(widths, limit_ms: float, is_noted: bool):
    model = LatencyModel(timer=Steady(), original=widths.program, budget=Budget(latency_ms=limit_ms))
    reached, *notes = _latencies(model, widths.program, widths)
    assert str(reached) == (f"latency_ms: 2 now, 1.5 at the least (95 % interval 1.4 to 1.6), budget {limit_ms:g}")
    assert [f"the budget of {limit_ms:g} ms is within the 95 % interval" in note for note in notes] == [True] * is_noted
