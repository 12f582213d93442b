"""`keep=` and `ratios=` of `optimize`: every method, without data, resumed, and in what a plan says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxsurgery
from fxsurgery import Budget, Spend
from fxsurgery.errors import BudgetError, RunError, SpecError, StructureError, SurgeryError
from fxsurgery.passes import replay
from nonempty import nonempty
from zoo import ZOO, example

X, Y = torch.randn(24, 3, 12, 12, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 10
QUICK: dict[str, Any] = {"fewest_steps": 2, "most_steps": 3, "align": 1, "verbose": False}
DATA: dict[str, Any] = {"train_data": (X, Y), "val_data": (X, Y), **QUICK}
WITHOUT_ALIGN = {name: value for name, value in DATA.items() if name != "align"}
METHODS: dict[str, dict[str, Any]] = {
    "magnitude": {"method": "prune"},
    "bn-gamma": {"method": "prune", "importance": "bn-gamma"},
    "taylor": {"method": "prune", "importance": "taylor", "taylor_batches": 1},
    "random": {"method": "prune", "importance": "random"},
    "rounds": {"method": "prune", "rounds": 3},
    "local": {"method": "prune", "scope": "local"},
    "dnal": {"method": "dnal", "architecture_epochs": 1},
    "dnal at random": {"method": "dnal", "random": True},
}


def net() -> nn.Module:
    return ZOO["Residual"]()


def outputs(model: nn.Module) -> dict[str, int]:
    return {name: m.weight.shape[0] for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}


BEFORE = outputs(net())


@pytest.mark.parametrize("name", METHODS)
def test_every_method_keeps_what_it_is_asked_to_keep(name: str):
    model = net()
    keep = ("conv2", model.head)
    result = fxsurgery.optimize(
        model, keep=keep, ratios={"project.0": 0.5}, budget=Budget(macs=0.7), **METHODS[name], **DATA
    )
    after = outputs(result.model)
    assert after["stem"] == after["conv2"] == 8
    assert after["conv3"] == after["project.0"] == 6
    assert result.cost[1].macs <= 0.7 * result.cost[0].macs
    assert "kept at full width: conv2, head; and what shares channels with them: stem" in result.notes
    assert any("units that stay by ratio: project.0 6 of 12" in note for note in result.notes)
    assert replay(result.log, result.original).text() == result.program.text()


@pytest.mark.parametrize("name", [name for name in METHODS if name != "bn-gamma"])
def test_without_a_budget_only_what_has_a_ratio_shrinks(name: str):
    result = fxsurgery.optimize(net(), ratios={"conv1": 0.5, "conv3": 0.25}, **METHODS[name], **DATA)
    assert outputs(result.model) == {**BEFORE, "conv1": 3, "conv3": 3, "project.0": 3}


def test_with_a_penalty_the_rest_is_left_to_the_gates():
    config = {"penalty": 10.0, "architecture_epochs": 1}
    result = fxsurgery.optimize(
        net(), keep="stem", ratios={"conv3": 0.5}, **config, **{**DATA, "most_steps": 30, "fewest_steps": 30}
    )
    after = outputs(result.model)
    assert (after["stem"], after["conv3"]) == (8, 6)
    assert after["conv1"] < 6


def test_gates_are_learned_for_nothing_that_is_kept():
    kept = fxsurgery.optimize(net(), keep="stem", budget=Budget(macs=0.8), architecture_epochs=1, **DATA)
    free = fxsurgery.optimize(net(), budget=Budget(macs=0.8), architecture_epochs=1, **DATA)
    assert (len(kept.gates), len(free.gates)) == (18, 26)


def test_works_without_data():
    result = fxsurgery.optimize(
        net(), keep="stem", ratios={"conv3": 0.5}, example_inputs=example("Residual"), method="prune", **QUICK
    )
    assert outputs(result.model) == {**BEFORE, "conv3": 6, "project.0": 6}


def test_rounds_do_not_cut_the_channels_of_the_last_head():
    """With one head left, the structure shows its channels as units: a later round must not take these for heads."""
    model = ZOO["Attention"]()
    result = fxsurgery.optimize(model, ratios={"qkv": 0.5}, budget=Budget(macs=0.6), method="prune", rounds=3, **DATA)
    assert outputs(result.model)["qkv"] == outputs(model)["qkv"] // 2


@pytest.mark.parametrize("places", [2, 8])
def test_no_move_of_an_evolution_touches_a_kept_layer(places: int):
    model, keep = net(), ("conv2", "conv1")
    evolution: dict[str, Any] = {
        "method": "ectonas", "match_epochs": 1, "rounds": 1, "rolling_epochs": 1, "places": places,
        "learning_rate": 0.01,
    }  # fmt: skip
    result = fxsurgery.optimize(model, keep=keep, spend=Spend(epochs=60), **evolution, **WITHOUT_ALIGN)
    assert result.search is not None
    moves = nonempty(trial.move for trial in result.search.trials if trial.move)
    for layer in ("stem", "conv1", "conv2"):
        assert not any(f"'{layer}'" in move.replace(" after=", " at=") and _changes(move) for move in moves), layer
    for member in nonempty(result.pareto):
        after = outputs(member.model)
        assert (after["stem"], after["conv1"], after["conv2"]) == (8, 6, 8)


def _changes(move: str) -> bool:
    return move.startswith(("widen", "prune-channels", "svd-shrink", "remove-layer"))


def test_an_evolution_refuses_ratios():
    with pytest.raises(SurgeryError, match=r"ratios= is not for method='ectonas'.*keep= works"):
        fxsurgery.plan(net(), ratios={"conv1": 0.5}, method="ectonas", **WITHOUT_ALIGN)


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"keep": "haed"}, SpecError, "did you mean 'head'"),
        ({"keep": 3}, SurgeryError, "keep=3"),
        ({"keep": ("stem", 3)}, SpecError, "keep: 3 is no layer"),
        ({"ratios": {"conv1": 1.5}}, SpecError, "1.5 for 'conv1' is the fraction"),
        ({"ratios": {"conv1": float("nan")}}, SpecError, "nan for 'conv1' is the fraction"),
        ({"ratios": {"conv1": "half"}}, SpecError, "'half' for 'conv1' is the fraction"),
        ({"ratios": ["conv1"]}, SpecError, "it must be a dict"),
        ({"ratios": {"head": 0.5}}, StructureError, "whose width cannot change"),
        ({"keep": "stem", "budget": Budget(macs=0.1)}, BudgetError, "without keep= it is"),
        ({"keep": "*", "budget": Budget(macs=0.5)}, StructureError, "keep= holds every width"),
    ],
)
@pytest.mark.parametrize("door", [fxsurgery.plan, fxsurgery.optimize])
def test_mistakes_are_refused_before_anything_trains(door: Any, asked: dict[str, Any], error: type, said: str):
    with pytest.raises(error, match=said.replace("(", r"\(")):
        door(net(), **asked, **DATA)


def test_a_plan_says_what_is_reachable_with_what_is_kept():
    free, kept = (fxsurgery.plan(net(), keep=keep, method="prune", **DATA) for keep in ((), "stem"))
    least = [next(r.least for r in one.reach if r.name == "macs") for one in (free, kept)]
    assert least[0] < least[1]
    assert "kept at full width: stem; and what shares channels with them: conv2" in kept.notes
    fixed = fxsurgery.plan(net(), ratios={"conv1": 0.5}, method="prune", **DATA)
    result = fxsurgery.optimize(net(), ratios={"conv1": 0.5}, method="prune", **DATA)
    assert next(r.least for r in fixed.reach if r.name == "macs") == result.cost[1].macs


def test_a_run_resumes_with_the_same_layers_alone(tmp_path: Path):
    asked: dict[str, Any] = {
        "ratios": {"*": 0.5, "conv1": 0.25},
        "method": "prune",
        "run_dir": tmp_path / "run",
    }

    def state(**others: Any) -> list[Tensor]:
        result = fxsurgery.optimize(net(), **{**asked, **DATA, **others})
        return [*result.model.state_dict().values()]

    first = state()
    assert all(torch.equal(a, b) for a, b in nonempty(zip(first, state(resume=True), strict=True)))
    for others in ({"keep": "bn1"}, {"ratios": {"conv1": 0.5}}, {"ratios": {"conv1": 0.25, "*": 0.5}}):
        with pytest.raises((RunError, SpecError), match=next(iter(others))):
            state(resume=True, **others)


def test_the_model_is_left_alone():
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    fxsurgery.optimize(model, keep=model.stem, ratios={model.conv3: 0.5}, method="prune", **DATA)
    assert all(torch.equal(value, before[name]) for name, value in nonempty(model.state_dict().items()))
