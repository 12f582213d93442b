"""Callbacks: what they receive, in which order, and that they cannot change a result."""

import numpy as np
import pytest
import torch
from torch import nn

import fxsurgery
from fxsurgery import Budget, Callback, CallbackError, Dnal, Ectonas, Prune, Spend, SurgeryError, TrainingError
from fxsurgery.runs import run_directory
from fxsurgery.training import Progress, Recipe, Task, adamw, fit
from fxsurgery.training.callbacks import RunBegin, RunEnd, StageBegin, StageEnd, StepEnd, Validation
from noisy import Noisy, images
from nonempty import nonempty

SHORT = {"align": 2, "fewest_steps": 6, "weights_epochs": 1, "finetune_epochs": 1, "learning_rate": 0.02}
MOVES = Ectonas(weights_epochs=1, finetune_epochs=1, match_epochs=1, rounds=1, places=1, learning_rate=0.02)


def net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.2), nn.AdaptiveAvgPool2d(1)]
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 4))


def optimized(*callbacks: Callback, **options):
    data = {"train_data": Noisy(64), "val_data": images(32), "batch_size": 16}
    common = {"budget": Budget(macs=0.6), "verbose": False, "device": "cpu", **data}
    return fxsurgery.optimize(net(), **{**common, **options}, callbacks=callbacks)


class Recorder(Callback):
    """Keeps every event."""

    def __init__(self):
        self.events = []

    def keep(self, event):
        self.events.append(event)

    on_run_begin = on_stage_begin = on_step_end = on_validation = on_stage_end = on_run_end = keep

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def weights(result):
    return {name: tensor.clone() for name, tensor in result.model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("config", "stages"),
    [
        (Dnal(**SHORT, architecture_epochs=1), ["weights", "architecture", "fine-tune"]),
        (Prune(**SHORT), ["weights", "fine-tune"]),
    ],
    ids=["dnal", "prune"],
)
def test_every_stage_step_and_validation_is_reported_in_order(config, stages):
    seen = Recorder()
    result = optimized(seen, config=config, trained=False)
    begin, *_, end = seen.events
    assert isinstance(begin, RunBegin)
    assert isinstance(end, RunEnd)
    assert begin.hyperparameters["learning_rate"] == 0.02
    assert begin.hyperparameters["budget.macs"] == 0.6
    assert [event.stage for event in seen.of(StageBegin)] == stages
    assert [(event.stage, event.steps, event.failure) for event in seen.of(StageEnd)] == [
        (event.stage, event.steps, None) for event in nonempty(seen.of(StageBegin))
    ]
    for stage in nonempty(seen.of(StageBegin)):
        steps = nonempty(event for event in seen.of(StepEnd) if event.stage == stage.stage)
        assert [event.step for event in steps] == list(range(1, stage.steps + 1))
    total = nonempty(seen.of(StepEnd))
    assert [event.global_step for event in total] == list(range(1, len(total) + 1))
    assert {"trained", "pruned", "fine-tuned"} <= {event.stage for event in seen.of(Validation) if not event.step}
    last = [event for event in seen.of(Validation) if event.stage == "fine-tune"][-1]
    assert last.metric == "accuracy"
    assert 0 <= last.score <= 1
    assert last.loss > 0
    assert end.results["val/accuracy"] == result.metrics["val"].after
    assert end.results["macs_ratio"] <= 0.6


def test_the_networks_of_an_evolution_are_reported_alike_with_every_executor():
    reported = []
    for options in ({}, {"executor": "processes", "workers": 2}):
        seen = Recorder()
        optimized(seen, config=MOVES, spend=Spend(epochs=12), budget=None, trained=False, **options)
        stages = [event.stage for event in seen.of(StageBegin)]
        assert stages[0].startswith("warm-up")
        assert stages[-1] == "fine-tune"
        assert len(stages) == len(set(stages)) == len(seen.of(StageEnd)) > 4
        steps = [event.global_step for event in seen.of(StepEnd)]
        assert steps == sorted(steps)
        reported.append({(e.stage, e.step, e.loss) for e in seen.of(StepEnd)} | {*map(str, seen.of(StageEnd))})
    assert reported[0] == reported[1]


class Meddler(Callback):
    """Does what a callback may do to the process."""

    def on_step_end(self, event):
        torch.manual_seed(7)
        np.random.seed(7)  # noqa: NPY002 -- what a user's code may do
        torch.rand(3)
        torch.set_grad_enabled(False)


def test_a_callback_that_draws_numbers_changes_nothing():
    plain, observed = optimized(config=Prune(**SHORT)), optimized(Meddler(), config=Prune(**SHORT))
    assert same(weights(plain), weights(observed))
    assert plain.history[-1]["loss"] == observed.history[-1]["loss"]
    assert torch.is_grad_enabled()


def test_events_are_read_only():
    class Changes(Callback):
        def on_validation(self, event):
            event.figures["accuracy"] = 1.0

    with pytest.raises(CallbackError, match="TypeError"):
        optimized(Changes(), config=Prune(**SHORT))
    with pytest.raises(AttributeError):
        StageBegin("a", 1, "b").steps = 3


def test_a_callback_that_raises_is_named_and_its_cause_is_chained():
    class Breaks(Callback):
        def on_step_end(self, event):
            if event.step == 3:
                raise ValueError("no more")

    seen = Recorder()
    with pytest.raises(
        CallbackError, match=r"callback Breaks: on_step_end in stage 'fine-tune' raised ValueError: no"
    ) as told:
        optimized(seen, Breaks(), config=Prune(**SHORT))
    assert isinstance(told.value.__cause__, ValueError)
    [end] = seen.of(RunEnd)
    assert (end.failure, dict(end.results)) == ("a callback failed", {})


def test_a_stage_that_fails_is_reported_as_failed():
    x, y = torch.randn(32, 4), torch.randn(32, 1)
    seen = Recorder()
    task = Task.of((x, y), (x, y), loss=lambda o, t: (o - t).square().mean() * float("inf"))
    with pytest.raises(TrainingError):
        fit(
            nn.Linear(4, 1),
            task,
            Recipe(steps=4, optimizer=adamw(0.1)),
            progress=Progress(callbacks=[seen], verbose=False),
        )
    [end] = seen.of(StageEnd)
    assert "the loss is" in end.failure
    assert end.steps == 0


def test_an_interrupted_run_reports_its_end():
    class Interrupts(Callback):
        def on_step_end(self, event):
            raise KeyboardInterrupt

    seen = Recorder()
    with pytest.raises(KeyboardInterrupt):
        optimized(seen, Interrupts(), config=Prune(**SHORT))
    [end] = seen.of(RunEnd)
    assert end.failure == "KeyboardInterrupt"


def test_what_a_resumed_run_recalls_is_not_reported_again(tmp_path, monkeypatch):
    monkeypatch.setattr(run_directory, "SNAPSHOT_SECONDS", 0.0)

    class Dies(Callback):
        def on_step_end(self, event):
            if event.stage == "fine-tune" and event.step == 4:
                raise KeyboardInterrupt

    options = {"config": Prune(**SHORT), "trained": False}
    with pytest.raises(KeyboardInterrupt):
        optimized(Dies(), run_dir=tmp_path / "run", **options)
    seen = Recorder()
    result = optimized(seen, run_dir=tmp_path / "run", resume=True, **options)
    [stage] = seen.of(StageBegin)
    assert (stage.stage, stage.step) == ("fine-tune", 3)
    first = seen.of(StepEnd)[0]
    assert (first.step, first.global_step) == (4, 6 + 4)
    assert "trained" not in {event.stage for event in seen.of(Validation)}
    assert same(weights(result), weights(optimized(**options)))


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([Recorder], r"callbacks is the class Recorder; create an instance: Recorder\(\)"),
        ([print], "is not a fxsurgery.Callback; give an instance of a subclass, or a list of them"),
        (3, "callbacks: 3 is not a fxsurgery.Callback"),
    ],
)
def test_what_is_no_callback_is_refused(callbacks, message):
    with pytest.raises(SurgeryError, match=message):
        fxsurgery.optimize(net(), callbacks=callbacks, verbose=False)


def test_a_single_callback_needs_no_list():
    seen = Recorder()
    data = {"train_data": Noisy(64), "val_data": images(32), "batch_size": 16}
    fxsurgery.optimize(net(), **data, callbacks=seen, verbose=False, device="cpu", config=Prune(**SHORT))
    assert seen.of(StepEnd)


def test_a_plan_reports_nothing():
    seen = Recorder()
    data = {"train_data": Noisy(64), "val_data": images(32), "batch_size": 16}
    fxsurgery.plan(net(), **data, callbacks=[seen], verbose=False, device="cpu", config=Prune(**SHORT))
    assert seen.events == []
