"""A budget of latency of an evolutionary search: verified at the end, on made-up devices."""

from dataclasses import replace

import pytest

from devices import Device
from fxsurgery import Budget, Result, preparation
from fxsurgery.errors import BudgetError
from fxsurgery.program import Program
from searchers.ectonas.test_search import QUICK, cnn, evolved

SHARE = 0.9


def ended(monkeypatch: pytest.MonkeyPatch, device: type[Device], finetune_epochs: float = 0, **options: float):
    """The result of a search that measures on such a device, and the device."""
    made = list[Device]()

    def timer(_: object, original: Program, *__: object) -> Device:
        made.append(device(original, **options))
        return made[-1]

    monkeypatch.setattr(preparation, "Timer", timer)
    config = replace(QUICK, operations=("identity", "remove-units", "remove-channels"), change=0.3, greediness=0.9)
    config = replace(config, finetune_epochs=finetune_epochs)
    result: Result = evolved(cnn(), config, 40, budget=Budget(latency_ms=SHARE))
    return result, made[0]


@pytest.mark.parametrize("finetune_epochs", [0, 2])
def test_what_is_returned_was_verified(monkeypatch: pytest.MonkeyPatch, finetune_epochs: float):
    result, device = ended(monkeypatch, Device, finetune_epochs, noise=0.01)
    measured = {id(program): high for program, _, high in device.thorough}
    assert measured[id(result.program)] <= SHARE * device.original_ms
    assert result.latency["high_ms"] == pytest.approx(measured[id(result.program)])
    assert result.latency["limit_ms"] == pytest.approx(SHARE * device.original_ms)


class SlowAtFirst(Device):
    """Finds the first network that is measured thoroughly to be slow."""

    def ratio(self, program: Program, *, thorough: bool) -> tuple[float, float, float]:
        found, low, high = super().ratio(program, thorough=thorough)
        return (2 * found, 2 * low, 2 * high) if thorough and len(self.thorough) == 1 else (found, low, high)


def test_the_next_best_wins_where_the_best_is_too_slow(monkeypatch: pytest.MonkeyPatch):
    usual, _ = ended(monkeypatch, Device)
    result, device = ended(monkeypatch, SlowAtFirst)
    first, second = (program for program, *_ in device.thorough)
    assert first.log == usual.program.log
    assert second is result.program
    assert result.latency["high_ms"] <= result.latency["limit_ms"]


class SlowAtSecond(Device):
    """Finds the second network that is measured thoroughly to be slow: the fine-tuned winner."""

    def ratio(self, program: Program, *, thorough: bool) -> tuple[float, float, float]:
        found, low, high = super().ratio(program, thorough=thorough)
        return (2 * found, 2 * low, 2 * high) if thorough and len(self.thorough) == 2 else (found, low, high)


def test_a_winner_that_is_slow_once_fine_tuned_stays_as_it_was(monkeypatch: pytest.MonkeyPatch):
    result, device = ended(monkeypatch, SlowAtSecond, 4)
    assert len(device.thorough) == 2
    assert device.thorough[0][0] is result.program
    assert any("the winner is kept as it was before" in note for note in result.notes)
    assert result.latency["high_ms"] <= result.latency["limit_ms"]


def test_a_search_whose_networks_are_all_slow_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BudgetError, match=r"a latency of [\d.]+ ms \(original: [\d.]+ ms\) is not met"):
        ended(monkeypatch, Device, bias=3.0)
