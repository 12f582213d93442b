"""The user's own fine-tune function: called once, checked, and part of the run's identity."""

import functools
from pathlib import Path

import pytest
import torch
from torch import nn

import fxsurgery
from fxsurgery import Dnal, Ectonas, Prune, RunError, Spend, SurgeryError, TrainingError
from fxsurgery.training.callbacks import StageBegin, StageEnd
from nonempty import nonempty
from tests.training.test_callbacks import SHORT, Recorder, net, optimized, same, weights

CALLS = []


def scaled(model: nn.Module, factor: float = 1.5) -> None:
    """Change the weights in place, in a way that depends on random numbers."""
    CALLS.append(model.training)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor).add_(0.01 * torch.randn_like(parameter))


def returned(model: nn.Module) -> nn.Module:
    scaled(model)
    return model


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


@pytest.mark.parametrize(
    ("config", "times"),
    [(Dnal(**SHORT, architecture_epochs=1), 1), (Prune(**SHORT), 1), (Prune(**SHORT, rounds=2), 1)],
    ids=["dnal", "prune", "prune in rounds"],
)
def test_the_function_replaces_the_last_fine_tune_stage(config, times):
    seen = Recorder()
    optimized(seen, config=config, finetune=scaled)
    assert [True] * times == CALLS
    stages = [(event.stage, event.steps) for event in seen.of(StageBegin)]
    assert stages[-1] == ("fine-tune, round 2 of 2" if getattr(config, "rounds", 1) == 2 else "fine-tune", 0)
    assert [name for name, steps in stages[:-1] if not steps] == []
    assert seen.of(StageEnd)[-1].failure is None


def test_the_function_fine_tunes_the_winner_of_an_evolution_beside_the_spend():
    moves = Ectonas(match_epochs=1, rounds=1, places=1, learning_rate=0.02, finetune_epochs=3)
    result = optimized(config=moves, spend=Spend(epochs=8), budget=None, finetune=scaled)
    assert CALLS == [True]
    assert result.search.finetuned == 0


def test_the_function_may_return_the_model_and_draw_random_numbers():
    one, other = (weights(optimized(config=Prune(**SHORT), finetune=f, metric=first)) for f in (scaled, returned))
    assert same(one, other)
    assert not same(one, weights(optimized(config=Prune(**SHORT), finetune=nothing, metric=first)))


def first(output, target):
    """A metric that is the same for every network: of equals, the later one is kept."""
    return 1.0


def nothing(model):
    """Train nothing."""


def test_it_works_without_data():
    fxsurgery.optimize(net(), config=Prune(**SHORT), finetune=scaled, verbose=False, device="cpu")
    assert CALLS == [True]


def test_a_resumed_run_does_not_call_it_again(tmp_path: Path):
    options = {"config": Prune(**SHORT), "finetune": scaled, "metric": first, "run_dir": tmp_path / "run"}
    result = optimized(**options)
    again = optimized(**options, resume=True)
    assert CALLS == [True]
    assert same(weights(result), weights(again))


def test_another_function_is_another_run(tmp_path: Path):
    optimized(config=Prune(**SHORT), finetune=scaled, run_dir=tmp_path / "run")
    with pytest.raises(RunError, match="finetune"):
        optimized(config=Prune(**SHORT), finetune=returned, run_dir=tmp_path / "run", resume=True)


def widened(model):
    [last] = [m for m in model.modules() if isinstance(m, nn.Linear)]
    last.weight = nn.Parameter(torch.zeros(5, last.in_features))


def swapped(model):
    name = next(name for name, m in model.named_modules() if isinstance(m, nn.ReLU))
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], nn.GELU())


def broken(model):
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))


def fails(model):
    raise KeyError("lr")


@pytest.mark.parametrize(
    ("finetune", "message"),
    [
        (
            widened,
            r"finetune= widened changed the structure of the model: .*weight` was \(4, \d+\) float32, is \(5, \d+\)",
        ),
        (swapped, r"swapped changed the structure of the model: layer `.*` was ReLU, is GELU"),
        (lambda model: model.half(), "float32, is .* float16"),
        (broken, "broken left values that are not finite in"),
        (fails, "fails raised KeyError: 'lr'; correct the function"),
        (lambda model: 0.9, "returned a float; return the model, or nothing"),
    ],
)
def test_what_breaks_the_model_is_refused(finetune, message):
    with pytest.raises(TrainingError, match=message):
        optimized(config=Prune(**SHORT), finetune=finetune)


def needs_more(model, epochs):
    """A function that needs another argument."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finetune": 3}, "finetune=3"),
        (
            {"finetune": needs_more},
            r"needs_more\(model, epochs\) cannot be called with the model alone: .*functools.partial",
        ),
        ({"finetune": nn.Linear}, "must be a function of the model, not type"),
        ({"finetune": scaled, "teacher": "original"}, "leave one out"),
    ],
)
def test_what_cannot_fine_tune_is_refused_before_any_training(options, message):
    with pytest.raises(SurgeryError, match=message):
        optimized(config=Prune(**SHORT), **options)
    assert CALLS == []


def test_a_partial_is_a_function_of_the_model():
    optimized(config=Prune(**SHORT), finetune=functools.partial(scaled, factor=0.9))
    assert CALLS == [True]


def test_the_users_model_stays_as_it_is():
    model = net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    fxsurgery.optimize(model, config=Prune(**SHORT), finetune=scaled, verbose=False, device="cpu")
    assert same(before, model.state_dict())


def test_a_plan_leaves_the_stage_out_and_says_so():
    plan = fxsurgery.plan(net(), config=Prune(**SHORT), finetune=scaled, verbose=False, device="cpu")
    assert "fine-tune" not in {stage.name for stage in nonempty(plan.stages)}
    assert "does not include your finetune function" in str(plan)
    assert CALLS == []
