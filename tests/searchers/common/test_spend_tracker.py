"""Spending is in whole steps and never more than is there; time that a run had before a kill counts."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxsurgery import Spend
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.searchers.common.spend_tracker import SpendTracker


@given(st.floats(0.001, 1e4), st.integers(1, 10**5))
def test_so_many_epochs_are_never_more_steps_than_that(epochs: float, epoch: int):
    purse = SpendTracker(Spend(epochs=epochs), epoch, RunDir())
    assert purse.allowed <= epochs * epoch + 1e-6 * epochs * epoch
    assert purse.allowed > epochs * epoch - 1


def test_whole_epochs_are_not_rounded_down():
    assert SpendTracker(Spend(epochs=0.1 * 3), 10, RunDir()).allowed == 3
    assert SpendTracker(Spend(epochs=300), 844, RunDir()).allowed == 300 * 844


def test_what_is_reserved_cannot_be_spent():
    purse = SpendTracker(Spend(epochs=10), 5, RunDir(), reserved=12)
    assert purse.left == 38
    purse.spent = 38
    assert (purse.left, purse.epochs) == (0, 7.6)


def test_without_a_limit_of_time_there_is_no_deadline():
    assert SpendTracker(Spend(epochs=1), 1, RunDir()).deadline() is None


def test_a_run_that_goes_on_has_no_more_time_than_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr("fxsurgery.searchers.common.spend_tracker.time.monotonic", lambda: now[0])

    def purse(*, resume: bool) -> SpendTracker:
        return SpendTracker(Spend(seconds=60), 1, RunDir.open(tmp_path / "run", {}, resume=resume))

    first = purse(resume=False)
    now[0] += 10
    assert first.deadline() == 160.0
    now[0] += 25
    assert first.deadline() == 160.0
    first.run.__exit__()
    now[0] = 5000.0
    second = purse(resume=True)
    now[0] += 1
    assert second.deadline() == 5001.0 + 50
    assert second.deadline() == 5001.0 + 25
    now[0] += 5
    assert second.deadline() == 5001.0 + 25
    assert second.seconds == 40
