"""What is shown, and what is kept."""

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from fxsurgery.training import Progress
from fxsurgery.training.progress import TrainingProgress
from fxsurgery.training.progress_line import ProgressLine
from nonempty import nonempty


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
    assert out.getvalue() == ("weights: step 10/10, epoch 1, loss 0.5, accuracy 0.75, 0:20 elapsed, 0:00 left\n")


def test_lines_tell_the_time_left():
    out = io.StringIO()
    run(Progress(console=Console(file=out, width=120), interval=0))
    assert "step 3/10, epoch 1, loss 0.5, 0:06 elapsed, 0:14 left" in out.getvalue()


def test_on_a_terminal_there_is_a_live_line():
    out = io.StringIO()
    run(Progress(console=Console(file=out, width=120, force_terminal=True)))
    assert "10/10" in out.getvalue()
    assert "accuracy 0.75" in out.getvalue()


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TERM", "dumb")
    out = io.StringIO()
    run(Progress(console=Console(file=out, width=120, force_terminal=True), interval=3600))
    assert out.getvalue().startswith("weights: step 10/10, epoch 1, loss 0.5")


def drawn(width, **fields):
    """The line as it is drawn at a width, its end stripped."""
    line = ProgressLine(
        **{
            "stage": "fine-tune, round 2 of 3", "steps": 20_000, "step": 12_345, "epoch": 7, "loss": 0.123456,
            "metric": ("accuracy", 0.91234), "seconds": 754.0, "seconds_left": 468.0, **fields,
        }
    )  # fmt: skip
    out = io.StringIO()
    Console(file=out, width=width, color_system=None, legacy_windows=False).print(line)
    [text] = out.getvalue().splitlines()
    return text.rstrip()


def test_at_80_columns_a_line_has_stage_bar_step_loss_score_and_time_left():
    end = "12345/20000  loss 0.1235  accuracy 0.9123  7:48 left"
    text = drawn(80, stage="architecture")
    assert text.startswith("architecture ━━━")
    assert text.endswith(end.replace("7:48", "12:34  7:48"))
    assert drawn(80) == f"fine-tune, round 2 of 3 {end}"


@pytest.mark.parametrize(
    ("width", "there", "gone"),
    [
        (200, ["epoch 8", "12:34", "distillation 0.5", "━" * 12], []),
        (100, ["epoch 8", "12:34", "7:48 left"], ["distillation"]),
        (60, ["12345/20000", "loss 0.1235", "accuracy 0.9123"], ["━", "epoch"]),
        (40, ["12345/20000", "loss 0.1235"], ["accuracy", "left"]),
        (24, ["12345/20000", "fine-"], ["loss"]),
    ],
)
def test_what_does_not_fit_is_left_out_the_least_important_first(width, there, gone):
    text = drawn(width, terms=(("distillation", 0.5),))
    assert [part for part in nonempty(there) if part not in text] == []
    assert [part for part in gone if part in text] == []


@pytest.mark.parametrize("width", range(16, 200))
def test_a_line_never_wraps_and_always_has_stage_and_step(width):
    name = "agreement with the original on synthetic inputs"
    for fields in ({}, {"metric": (name, 0.5), "terms": (("task", 1.0), (name, 2.0))}, {"stage": "層" * 30}):
        text = drawn(width, **fields)
        assert cell_len(text) <= width
        assert "12345/20000" in text
        assert text[0] in "f層"


def test_before_the_first_step_only_stage_bar_and_step_are_shown():
    assert drawn(80, step=0).split() == "fine-tune, round 2 of 3 0/20000".split()


def test_a_name_with_control_characters_is_written_out():
    assert "\\x1b[31m" in drawn(120, stage="red\x1b[31m")


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
