"""`optimize` with a memory format and a precision that are asked for, or measured once for the run."""

from pathlib import Path

import pytest
import torch
from torch import nn

from fxsurgery import Budget, Prune, optimize, plan
from fxsurgery.errors import RunError, SurgeryError
from fxsurgery.runs.journal import Journal
from fxsurgery.searchers import trainer
from fxsurgery.training import Amount, probe
from fxsurgery.training.probe import Measured, Probe
from nonempty import nonempty

SETTINGS = Prune(align=2, fewest_steps=4, finetune_epochs=1, learning_rate=0.02)


def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip


def data(samples=32):
    x = torch.randn(samples, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, x.flatten(1).argmax(1) % 4


def quick(**options):
    common = {
        "train_data": data(),
        "val_data": data(),
        "batch_size": 16,
        "budget": Budget(macs=0.5),
        "config": SETTINGS,
    }
    return optimize(net(), **{**common, "device": "cpu", "verbose": False, **options})


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> list:
    """The recipes of the stages that trained."""
    seen, real = [], trainer.fit

    def watched(model, task, recipe, **options):
        seen.append(recipe)
        return real(model, task, recipe, **options)

    monkeypatch.setattr(trainer, "fit", watched)
    return seen


@pytest.fixture
def probes(monkeypatch: pytest.MonkeyPatch) -> list:
    """What was measured, as if channels_last took half the time and bf16 four fifths."""
    seen = []

    def measure(self: Probe, candidates):
        seen.append((self, candidates))
        share = {(None, None): 1.0, (None, "no"): 1.0, ("channels_last", None): 0.5, ("channels_last", "no"): 0.5}
        return {
            mode: Measured([share.get((mode.memory_format, mode.mixed_precision), 0.8)] * 3, [1.0, 0.9])
            for mode in candidates
        }

    monkeypatch.setattr(Probe, "measure", measure)
    return seen


def weights(result):
    return {name: p.detach() for name, p in result.model.named_parameters()}


def test_a_memory_format_reaches_the_training_and_leaves_the_result_equal(recipes, probes):
    whole, result = quick(), quick(memory_format="channels_last")
    assert [recipe.memory_format for recipe in recipes] == [None, "channels_last"]
    for name, weight in nonempty(weights(whole).items()):
        torch.testing.assert_close(weights(result)[name], weight, rtol=1e-3, atol=1e-4)
    assert all(p.is_contiguous() for p in nonempty(result.model.parameters()))
    assert not probes
    assert result.notes == whole.notes


def test_auto_takes_what_was_measured_to_be_fast_and_says_so(recipes, probes):
    result = quick(memory_format="auto", mixed_precision="auto")
    assert [(recipe.memory_format, recipe.mixed_precision) for recipe in recipes] == [("channels_last", "no")]
    [(probing, candidates)] = probes
    assert len(candidates) == 4
    assert (probing.seed, probing.device, probing.recipe.accumulate) == (0, "cpu", 1)
    assert "training mode, as measured here: channels_last, which takes 0.50 of the time of: plain" in result.notes
    quick(mixed_precision="auto")
    assert (recipes[-1].memory_format, recipes[-1].mixed_precision) == (None, "bf16")


def test_measuring_does_not_change_the_result(recipes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "FAST_ENOUGH", 0.0)
    whole, result = quick(), quick(memory_format="auto", mixed_precision="auto")
    assert [recipe.memory_format for recipe in recipes] == [None, None]
    assert all(torch.equal(weights(result)[name], weight) for name, weight in nonempty(weights(whole).items()))
    [note] = [note for note in result.notes if "no other mode is clearly faster" in note]
    assert note.count("of its time") == 3, note


def test_a_resumed_run_trains_as_it_began(tmp_path: Path, recipes, probes, monkeypatch: pytest.MonkeyPatch):
    class Killed(BaseException):
        pass

    def kill(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "fit", kill)
        with pytest.raises(Killed):
            quick(memory_format="auto", run_dir=tmp_path / "run")
    monkeypatch.setattr(Probe, "measure", kill)
    result = quick(memory_format="auto", run_dir=tmp_path / "run", resume=True)
    assert [recipe.memory_format for recipe in recipes] == ["channels_last"]
    assert len(probes) == 1
    assert any("channels_last, which takes 0.50" in note for note in result.notes)


@pytest.mark.parametrize(
    "value",
    [["channels_first", None, "why"], ["channels_last", "bf16", "why"], ["channels_last", None, None], "channels_last",
     ["channels_last", None], [["channels_last"], None, "why"]],
)  # fmt: skip
def test_another_choice_in_the_journal_is_refused(tmp_path: Path, probes, value):
    quick(memory_format="auto", run_dir=tmp_path / "run")
    journal = tmp_path / "run" / "journal.jsonl"
    records = Journal(journal).records
    journal.unlink()
    [mine] = [record for record in records if record.get("name") == "training mode"]
    assert mine["value"][:2] == ["channels_last", None]
    forged = Journal(journal)
    for record in records:
        forged.append({**record, "value": value} if record is mine else record)
    with pytest.raises(RunError, match="'training mode' is not of its type"):
        quick(memory_format="auto", run_dir=tmp_path / "run", resume=True)


def test_another_memory_format_is_another_run(tmp_path: Path):
    quick(run_dir=tmp_path / "run")
    with pytest.raises(RunError, match='memory_format: null -> "channels_last"'):
        quick(run_dir=tmp_path / "run", resume=True, memory_format="channels_last")


@pytest.mark.parametrize(("name", "value"), [("memory_format", "channels_first"), ("mixed_precision", "automatic")])
def test_an_unknown_value_is_refused_before_anything_else(name: str, value: str):
    with pytest.raises(SurgeryError, match=rf"{name}='{value}': it must be .*'auto' or None"):
        quick(**{name: value})


def test_a_plan_says_what_would_be_chosen(probes):
    page = plan(
        net(), train_data=data(), val_data=data(), config=SETTINGS, budget=Budget(macs=0.5), device="cpu",
        memory_format="auto", verbose=False,
    )  # fmt: skip
    assert "channels_last, which takes 0.50" in str(page)


def test_a_run_without_data_measures_on_the_inputs_that_it_makes(recipes, probes, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Amount, "affordable", lambda _: Amount(samples=64, validation=32, steps=5, batch_size=32))
    result = optimize(net(), config=SETTINGS, device="cpu", verbose=False, memory_format="auto")
    assert [recipe.memory_format for recipe in recipes][-1] == "channels_last"
    assert recipes[0].memory_format is None
    assert any("channels_last, which takes 0.50" in note for note in result.notes)
