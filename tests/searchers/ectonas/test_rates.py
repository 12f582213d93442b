"""The learning rate of an evolutionary search: found once, and lowered for networks whose training diverges."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxsurgery
from fxsurgery import Ectonas, Spend
from fxsurgery.errors import SurgeryError, TrainingError
from fxsurgery.execution import JobRunner
from fxsurgery.searchers.ectonas.start_nets import start_net
from fxsurgery.training import sgd
from fxsurgery.training.rate_range import RangeTest
from nonempty import nonempty

EPOCH = 6
QUICK = Ectonas(weights_epochs=1, match_epochs=1, rounds=2, rolling_epochs=2, places=1)


def images(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    return torch.randn(count, 1, 8, 8, generator=generator) + labels.reshape(-1, 1, 1, 1), labels


def ffnn() -> nn.Module:
    return start_net("medium", convolutions=False, input_shape=(1, 8, 8), classes=4, seed=0)


def evolved(config: Ectonas = QUICK, epochs: float = 20, **options) -> fxsurgery.Result:
    given = {
        "train_data": images(96, 1), "val_data": images(48, 2), "trained": False, "spend": Spend(epochs=epochs),
        "config": config, "verbose": False, "batch_size": 16, "device": "cpu",
    }  # fmt: skip
    return fxsurgery.optimize(ffnn(), **{**given, **options})


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """Let the range test find half of the highest rate; collects what was tested, and that rate."""
    tested = []

    def run(self, stage):
        tested.append((stage, self.wanted))
        return self.wanted / 2

    monkeypatch.setattr(RangeTest, "run", run)
    return tested


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float, int]]:
    """Let matches after `add-units` diverge unless repeated; collects name, peak rate and steps of each training."""
    seen = []

    class Failing(JobRunner):
        def run(self, jobs, *args, **options):
            for job in jobs:
                rate = job.recipe.optimizer([nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"]
                seen.append((job.name, rate, job.recipe.steps))
            ends = super().run(jobs, *args, **options)
            wild = [": add-units" in job.name and "retry" not in job.name for job in jobs]
            return [replace(e, failure="the loss is nan") if w else e for e, w in zip(ends, wild, strict=True)]

    monkeypatch.setattr(fxsurgery.preparation, "JobRunner", Failing)
    return seen


@pytest.mark.parametrize(("trained", "highest"), [(False, 0.1), (True, 0.01)])
def test_one_rate_is_found_for_the_whole_search(trained, highest, found, jobs):
    result = evolved(replace(QUICK, operations=("identity", "remove-units"), finetune_epochs=1), trained=trained)
    assert found == [("search", highest)]
    assert {rate for _, rate, _ in nonempty(jobs)} == {highest / 2}
    assert f"search: a range test found the learning rate {highest / 2:g}" in result.notes


@pytest.mark.parametrize("settings", [{"learning_rate": 0.03}, {"optimizer": sgd(0.03)}])
def test_a_rate_that_is_given_is_kept_and_nothing_is_repeated(settings, found, jobs):
    result = evolved(replace(QUICK, **settings))
    assert found == []
    assert {rate for _, rate, _ in nonempty(jobs)} == {0.03}
    assert not any("retry" in name for name, *_ in jobs)
    assert any(trial.status == "failed" for trial in result.search.trials)


def test_a_network_that_diverges_is_trained_again_at_a_tenth_and_paid_for(found, jobs):
    result = evolved()
    again = [(name, rate) for name, rate, _ in jobs if "retry" in name]
    assert {name.rpartition(", ")[2] for name, _ in nonempty(again)} == {"retry 1"}
    assert all(rate == pytest.approx(0.05 * 0.1**power) for power, (_, rate) in enumerate(again[:1], 1))
    assert not any(trial.status == "failed" for trial in result.search.trials)
    assert result.search.spent * EPOCH == pytest.approx(sum(steps for *_, steps in jobs))
    assert result.search.spent <= result.search.allowed
    repeated = f"diverged {'was' if len(again) == 1 else 'were'} repeated at a tenth of the learning rate; pass "
    assert any(repeated in note for note in result.notes)


def test_the_descendants_of_such_a_network_keep_the_lower_rate(found, jobs):
    result = evolved(replace(QUICK, operations=("add-units",), parents=1, rounds=1), 30)
    rates = {name: rate for name, rate, _ in jobs}
    later = [trial for trial in result.search.trials if trial.generation == 2 and trial.score is not None]
    names = [name for name in rates for trial in later if name.endswith(f"#{trial.number}")]
    assert max(rates[name] for name in nonempty(names)) < 0.0051


def test_a_repetition_that_cannot_be_paid_for_is_left_out(found, jobs):
    result = evolved(replace(QUICK, operations=("add-units",), rounds=1), 4)
    assert result.search.spent <= 4
    assert result.search.spent * EPOCH == pytest.approx(sum(steps for *_, steps in jobs))


def test_a_warm_up_that_diverges_at_each_rate_is_an_error(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(RangeTest, "run", lambda self, stage: 1e30)
    with pytest.raises(TrainingError, match="the warm-up of the first network failed"):
        evolved(replace(QUICK, weights_epochs=3, gradient_clip=None))


def test_a_warm_up_that_diverges_is_repeated_and_a_resumed_run_ends_the_same(
    tmp_path: Path, found, monkeypatch: pytest.MonkeyPatch
):
    class KilledError(Exception):
        """Stands for a kill."""

    run, calls = JobRunner.run, []

    def failing(self, jobs, *args, **options):
        calls.append([job.name for job in jobs])
        if calls.count(calls[-1]) == 1 and len(calls) == kill_at:
            raise KilledError
        ends = run(self, jobs, *args, **options)
        is_first = jobs and jobs[0].name.startswith("warm-up") and "retry" not in jobs[0].name
        return [replace(end, failure="the loss is nan") for end in ends] if is_first else ends

    monkeypatch.setattr(JobRunner, "run", failing)
    kill_at = None
    whole = evolved(run_dir=tmp_path / "whole")
    assert any("1 training that diverged was repeated at a tenth" in note for note in whole.notes)
    assert calls[1] == ["warm-up: start #0, retry 1"]
    calls.clear()
    kill_at = 3
    with pytest.raises(KilledError):
        evolved(run_dir=tmp_path / "killed")
    kill_at = None
    monkeypatch.setattr(RangeTest, "run", lambda self, stage: pytest.fail("found again"))
    resumed = evolved(run_dir=tmp_path / "killed", resume=True)
    assert (resumed.notes, resumed.search, resumed.log) == (whole.notes, whole.search, whole.log)


def test_early_stopping_of_the_warm_up_is_charged_by_the_steps_that_ran(found):
    metrics = iter([0.9, *[0.1] * 1000])
    config = replace(QUICK, weights_epochs=10, early_stopping=2, operations=("identity", "remove-units"))
    options = {"val_data": images(16, 2), "metric": lambda output, target: next(metrics)}
    result = evolved(config, 30, **options)
    [start] = [trial for trial in result.search.trials if trial.number == 0]
    assert start.scores == ((1.0, 0.9), (2.0, 0.1), (3.0, 0.1))
    assert result.search.spent <= 30


@pytest.mark.parametrize(
    ("options", "message"),
    [({"schedule": "cosin"}, "schedule='cosin': it must be 'cosine'"), ({"early_stopping": 0}, "early_stopping=0")],
)
def test_settings_that_mean_nothing_are_refused(options, message):
    with pytest.raises(SurgeryError, match=message):
        Ectonas(**options)
