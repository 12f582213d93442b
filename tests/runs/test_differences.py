"""What a refused resume says: the keys that differ, old and new, and nothing else."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fxsurgery
from fxsurgery import Budget, Dnal, Prune
from fxsurgery.errors import RunError
from fxsurgery.runs.differences import MAX_LENGTH, MAX_SHOWN, differences
from fxsurgery.runs.layout import begin
from nonempty import nonempty


def digest(text: str, length: int = 64) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


CASES = {
    "nested": ({"settings": {"a": 1, "b": {"c": 2}}}, {"settings": {"a": 1, "b": {"c": 3}}}, ["config.b.c: 2 -> 3"]),
    "missing": ({"spend": {"epochs": 3}}, {"spend": {}}, ["spend.epochs: 3 -> (not set)"]),
    "a new key": ({}, {"seed": 1}, ["seed: (not set) -> 1"]),
    "null is a value": ({"budget": None}, {}, ["budget: null -> (not set)"]),
    "in a list": ({"x": [1, [2, 3]]}, {"x": [1, [2, 4]]}, ["x[1][1]: 3 -> 4"]),
    "lists of two lengths": ({"x": [1]}, {"x": [1, 2]}, ["x: [1] -> [1, 2]"]),
    "another function": (
        {"task": {"loss": ["a.one", digest("1", 16)]}},
        {"task": {"loss": "b.two"}},
        ['loss: "a.one" -> "b.two"'],
    ),
    "another code": (
        {"task": {"loss": ["a.one", digest("1", 16)]}},
        {"task": {"loss": ["a.one", digest("2", 16)]}},
        [f"loss: the code of a.one changed ({digest('1')[:8]}... -> {digest('2')[:8]}...)"],
    ),
    "an attribute": (
        {"task": {"loss": ["a.Loss", {"weight": 1.0, "power": 2}]}},
        {"task": {"loss": ["a.Loss", {"weight": 0.5, "power": 2}]}},
        ["loss.weight: 1.0 -> 0.5"],
    ),
    "an array": (
        {"task": {"loss": ["a.Loss", {"weight": digest("1")}]}},
        {"task": {"loss": ["a.Loss", {"weight": digest("2")}]}},
        [f"loss.weight: {digest('1')[:8]}... -> {digest('2')[:8]}..."],
    ),
    "weights": (
        {"fingerprint": {"graph": "g", "weights": digest("1", 16)}},
        {"fingerprint": {"graph": "g", "weights": digest("2", 16)}},
        [f"the weights of the model: {digest('1')[:8]}... -> {digest('2')[:8]}..."],
    ),
    "another method": (
        {"method": "dnal", "settings": {"a": 1}},
        {"method": "prune", "settings": {"b": 1}},
        ['method: "dnal" -> "prune"'],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_only_what_differs_is_listed_by_its_path(case: str):
    recorded, requested, expected = CASES[case]
    same = {"kept": {"long": list(range(50))}}
    assert differences({**same, **recorded}, {**same, **requested}) == expected
    assert differences(recorded, recorded) == []


def test_long_values_and_long_lists_are_shortened():
    [line] = differences({"x": "a" * 500}, {"x": "b" * 500})
    assert len(line) < 2 * MAX_LENGTH + 20
    many = differences({str(i): 0 for i in range(100)}, {str(i): 1 for i in range(100)})
    assert len(many) == MAX_SHOWN + 1
    assert many[-1] == f"and {100 - MAX_SHOWN} more"


def test_hostile_keys_and_values_give_one_line_each():
    [line] = differences({"a\x1b[2J\n": "x\x1b\n"}, {"a\x1b[2J\n": "\u202e"})
    assert line.isprintable()


def test_environments_are_compared_by_key_too(tmp_path: Path):
    asked = {"seed": 0, "environment": {"torch": "1", "device": "cpu", "threads": 2}}
    begin(tmp_path, asked, resume=False)
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "001-weights.weights").touch()
    [note] = begin(tmp_path, {**asked, "environment": {**asked["environment"], "torch": "2"}}, resume=True)
    assert note == 'resumed in another environment (environment.torch: "1" -> "2"): results may differ in rounding'


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


DATA = (torch.linspace(-1, 1, 32 * 3 * 64).reshape(32, 3, 8, 8), torch.arange(32) % 4)
JOB = {"train_data": DATA, "val_data": DATA, "verbose": False, "budget": Budget(macs=0.5)}
CONFIG = Prune(finetune_epochs=1, fewest_steps=2, most_steps=4)
OTHERS = {
    "a setting": ({"config": replace(CONFIG, most_steps=5)}, ["config.most_steps: 4 -> 5"]),
    "the budget": (
        {"budget": Budget(params=0.5)},
        ["budget.macs: 0.5 -> (not set)", "budget.params: (not set) -> 0.5"],
    ),
    "the method": ({"config": Dnal(most_steps=4)}, ['method: "prune" -> "dnal"']),
    "the weights": ({"model": net(1)}, ["the weights of the model: "]),
    "the data": (
        {"train_data": (DATA[0] + 1, DATA[1])},
        ["the example inputs"],
    ),
    "fewer data": (
        {"batch_size": 16, "train_data": (DATA[0][:16], DATA[1][:16])},
        ["batch_size: 64 -> 16", "the example inputs"],
    ),
    "the loss": ({"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}, ["loss: ", "metric: ", "metric_name: "]),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    fxsurgery.optimize(net(), **JOB, config=CONFIG, run_dir=path)
    return path


@pytest.mark.parametrize("case", OTHERS)
def test_a_refused_resume_names_the_keys_that_differ_and_no_others(finished: Path, case: str):
    other, expected = OTHERS[case]
    with pytest.raises(RunError) as caught:
        fxsurgery.optimize(**{"model": net(), **JOB, "config": CONFIG, **other}, run_dir=finished, resume=True)
    first, *lines, last = str(caught.value).split("\n")
    assert first == f"{finished} holds a run with other settings (recorded -> requested):"
    assert last.startswith("restore the recorded values")
    assert all(any(line.startswith(f"  {start}") for line in lines) for start in nonempty(expected))
    assert len(lines) <= len(expected) + 1
    assert len(str(caught.value)) < 600


def test_loading_an_unfinished_run_says_how_to_finish_it(finished: Path, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"format": 1}))
    with pytest.raises(RunError, match=r"has not finished.*run fxsurgery.optimize again .* resume=True"):
        fxsurgery.load(tmp_path)
    assert fxsurgery.load(finished).metric_name == "accuracy"
