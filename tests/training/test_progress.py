"""What is shown, and what is kept."""

import io

import pytest
from rich.console import Console

from fxsurgery.training import Progress
from fxsurgery.training.progress import TrainingProgress


def standing(step, metric=None):
    return TrainingProgress("weights", 0, step, 10, 0.5, metric, 0.1, 2.0 * step)


def run(progress):
    with progress.stage("weights", 10, "accuracy"):
        for step in range(1, 11):
            progress.show(standing(step, 0.75 if step == 5 else None))
            progress.record(standing(step))


def test_quiet_shows_nothing_and_keeps_the_history(capfd):
    progress = Progress.quiet()
    run(progress)
    progress.note("hello")
    assert capfd.readouterr() == ("", "")
    assert [record["step"] for record in progress.history] == list(range(1, 11))


def test_without_a_terminal_there_is_the_odd_plain_line():
    out = io.StringIO()
    run(Progress(console=Console(file=out, width=120), interval=3600))
    assert out.getvalue() == ("weights: step 10/10, epoch 1, loss 0.5, accuracy 0.75, 0:20 gone, 0:00 left\n")


def test_lines_tell_the_time_left():
    out = io.StringIO()
    run(Progress(console=Console(file=out, width=120), interval=0))
    assert "step 3/10, epoch 1, loss 0.5, 0:06 gone, 0:14 left" in out.getvalue()


def test_on_a_terminal_there_is_a_live_line():
    out = io.StringIO()
    run(Progress(console=Console(file=out, width=120, force_terminal=True)))
    assert "10/10" in out.getvalue()
    assert "accuracy 0.75" in out.getvalue()


def test_a_live_line_is_drawn_no_more_often_than_one_can_see(monkeypatch: pytest.MonkeyPatch):
    progress = Progress(console=Console(file=io.StringIO(), width=120, force_terminal=True))
    seconds = iter(range(100))
    monkeypatch.setattr("fxsurgery.training.progress.time.monotonic", lambda: 0.04 * next(seconds))
    due = list[int]()
    with progress.stage("weights", 10):
        for step in range(1, 11):
            if progress.is_due(step, 10):
                due.append(step)
                progress.show(standing(step))
    assert due
    assert due[-1] == 10
    assert len(due) < 6


def test_nothing_is_due_where_nothing_is_shown():
    progress = Progress.quiet()
    with progress.stage("weights", 10):
        assert not any(progress.is_due(step, 10) for step in range(1, 11))
