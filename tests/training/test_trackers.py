"""Loggers: what trackers of Accelerate get, and that nothing of theirs is left behind."""

import json
import sys
from pathlib import Path

import pytest
from accelerate.state import PartialState
from accelerate.tracking import GeneralTracker
from typer.testing import CliRunner

from fxsurgery import CallbackError, Ectonas, MissingExtraError, Prune, Spend, SurgeryError
from fxsurgery.cli import app
from nonempty import nonempty
from tests.training.test_callbacks import SHORT, optimized, same, weights


class Memory(GeneralTracker):
    """A tracker that keeps what it gets."""

    name = "memory"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.logged, self.config, self.calls = [], {}, []

    @property
    def tracker(self):
        return self.logged

    def start(self):
        self.calls.append("start")

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.logged.append((step, values))

    def finish(self):
        self.calls.append("finish")

    def curve(self, tag):
        return [(step, values[tag]) for step, values in self.logged if tag in values]


def test_a_tracker_gets_settings_curves_scores_and_costs():
    memory = Memory()
    result = optimized(loggers=memory, config=Prune(**SHORT), trained=False)
    assert memory.calls == ["start", "finish"]
    assert memory.config["method"] == "prune"
    assert memory.config["budget.macs"] == 0.6
    assert all(isinstance(value, bool | int | float | str) for value in nonempty(memory.config.values()))
    losses = memory.curve("fine-tune/loss")
    assert [step for step, _ in losses] == [7, 8, 9, 10, 11, 12]
    assert [step for step, _ in memory.curve("weights/lr")] == [1, 2, 3, 4, 5, 6]
    assert memory.curve("fine-tune/val/accuracy")[-1][0] == 12
    assert memory.curve("original/val/accuracy") == []
    assert memory.curve("pruned/val/accuracy")[0][0] == 6
    [(_, accuracy)] = memory.curve("result/val/accuracy")
    assert accuracy == result.metrics["val"].after
    [(_, macs)] = memory.curve("result/macs")
    assert macs == result.cost[1].macs
    steps = [step for step, _ in memory.logged]
    assert steps == sorted(steps)


def test_a_long_stage_is_logged_about_a_hundred_times_as_means():
    memory = Memory()
    result = optimized(loggers=[memory], config=Prune(**{**SHORT, "fewest_steps": 250}))
    losses = memory.curve("fine-tune/loss")
    assert 80 <= len(losses) <= 100
    recorded = [point["loss"] for point in result.history if point["stage"] == "fine-tune"]
    assert sum(loss for _, loss in losses) / len(losses) == pytest.approx(sum(recorded) / len(recorded), rel=0.05)


def test_logging_changes_nothing():
    assert same(weights(optimized(config=Prune(**SHORT))), weights(optimized(loggers=Memory(), config=Prune(**SHORT))))


def test_the_names_of_an_evolution_are_those_that_every_tracker_takes():
    memory = Memory()
    moves = Ectonas(match_epochs=1, rounds=1, places=1, learning_rate=0.02)
    optimized(loggers=memory, config=moves, spend=Spend(epochs=8), budget=None)
    tags = {tag for _, values in memory.logged for tag in values}
    assert any(tag.startswith("generation 1 competition 1 round 1: ") for tag in tags)
    assert not set("".join(tags)) - set("abcdefghijklmnopqrstuvwxyz0123456789_-. :/")


def test_tensorboard_writes_into_the_run_directory(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    PartialState._reset_state()
    result = optimized(loggers="tensorboard", config=Prune(**SHORT), run_dir=tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "logs" / "tensorboard"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"fine-tune/loss", "fine-tune/lr", "fine-tune/val/accuracy", "result/macs"} <= set(tags)
    assert events.Scalars("result/val/accuracy")[-1].value == pytest.approx(result.metrics["val"].after)
    assert [event.step for event in events.Scalars("fine-tune/loss")] == [1, 2, 3, 4, 5, 6]
    [config] = (tmp_path / "run" / "logs").rglob("hparams.yml")
    assert "budget.macs: 0.6" in config.read_text()
    assert PartialState._shared_state == {}
    optimized(loggers="tensorboard", config=Prune(**SHORT), run_dir=tmp_path / "run", resume=True)


def test_without_a_run_directory_tensorboard_writes_into_a_folder_of_its_own(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    optimized(loggers=("tensorboard",), config=Prune(**SHORT))
    [written] = (tmp_path / "fxsurgery-logs").glob("*/tensorboard/events*")
    assert written.stat().st_size > 0


@pytest.mark.parametrize(
    ("loggers", "message"),
    [
        ("tensorbord", r"loggers='tensorbord': there is no logger of this name; did you mean 'tensorboard'\?"),
        (("zzz",), "use one of aim, clearml"),
        (["tensorboard", "tensorboard"], "'tensorboard' is given twice"),
        ([3], "loggers="),
    ],
)
def test_a_logger_that_is_not_there_is_refused_before_any_training(loggers, message):
    with pytest.raises(SurgeryError, match=message):
        optimized(loggers=loggers, config=Prune(**SHORT))


@pytest.mark.parametrize(("name", "package"), [("wandb", r"'fxsurgery\[wandb\]'"), ("aim", "aim")])
def test_a_logger_whose_package_is_missing_names_it(name, package, monkeypatch):
    monkeypatch.setattr("fxsurgery.training.trackers.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(MissingExtraError, match=rf"loggers='{name}' .* is not installed; run: pip install {package}"):
        optimized(loggers=name, config=Prune(**SHORT))


class FakeRun:
    def __init__(self, calls):
        self.calls = calls

    def log(self, values, step=None):
        self.calls.append(("log", step, values))

    def finish(self):
        self.calls.append(("finish",))


def test_weights_and_biases_gets_a_project_and_steps_that_only_rise(monkeypatch):
    """`wandb` is not installed here: a stand-in module takes the calls of Accelerate's tracker."""
    calls, fake = [], type(sys)("wandb")
    fake.init = lambda **options: calls.append(("init", options)) or FakeRun(calls)
    fake.config = type("Config", (), {"update": lambda _, values, **__: calls.append(("config", values))})()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr("fxsurgery.training.trackers.get_available_trackers", lambda: ["wandb"])
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    optimized(loggers="wandb", config=Prune(**SHORT), trained=False)
    assert calls[0] == ("init", {"project": "mine"})
    assert calls[1][0] == "config"
    assert calls[-1] == ("finish",)
    steps = [call[1] for call in calls if call[0] == "log"]
    assert steps == sorted(nonempty(steps))


def test_a_logger_that_fails_is_named():
    class Broken(Memory):
        name = "broken"

        def log(self, values, step=None, **kwargs):
            raise OSError("disk full")

    with pytest.raises(CallbackError, match=r"logger broken: .* raised OSError: disk full"):
        optimized(loggers=Broken(), config=Prune(**SHORT))


def test_only_the_first_process_logs(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    memory = Memory()
    optimized(loggers=memory, config=Prune(**SHORT))
    assert memory.calls == memory.logged == []


def test_the_command_line_takes_loggers(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["optimize", "a:b", "--logger", "tensorboard", "--logger", "wandb", "--print-config"]
    shown = CliRunner().invoke(app, given)
    assert json.loads(shown.stdout)["loggers"] == ["tensorboard", "wandb"]
