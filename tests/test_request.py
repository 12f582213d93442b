"""One declaration of the arguments: signature, schema, configuration, flags, run identity and docs tell the same."""

import inspect
import subprocess
import sys
from dataclasses import MISSING, fields
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import torch
import typer
from torch import nn

import fxsurgery
from fxsurgery import Budget, DataError, Dnal, Spend, SurgeryError
from fxsurgery.cli import app
from fxsurgery.config import RunConfig, flag, text_of
from fxsurgery.field_docs import docs_of, one_line, summary
from fxsurgery.preparation import prepare
from fxsurgery.request import Arguments, OptimizeRequest, PlainArguments, Recorded, Signature, arguments_of
from fxsurgery.run_identity import KEYS
from fxsurgery.searchers.methods import METHODS, MethodName
from nonempty import nonempty

ROOT = Path(__file__).parents[1]
DECLARED = arguments_of(Arguments)
NAMES = [f.name for f in fields(Arguments)]
OPTIONS = {p.name: p for p in typer.main.get_command(app).commands["optimize"].loaded().params}


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))


def test_every_argument_is_declared_with_its_text():
    texts = docs_of(Arguments)
    assert list(DECLARED) == NAMES
    assert [name for name in NAMES if len(texts.get(name, "")) < 10] == []
    assert {argument.recorded for argument in DECLARED.values()} == set(nonempty(get_args(Recorded)))


@pytest.mark.parametrize("door", [fxsurgery.optimize, fxsurgery.plan], ids=lambda door: door.__name__)
def test_the_signature_has_the_fields_types_defaults_and_texts(door):
    seen = dict(inspect.signature(door).parameters)
    assert seen.pop("settings").kind is inspect.Parameter.VAR_KEYWORD
    assert sorted(seen) == sorted(nonempty(NAMES))
    assert next(iter(seen)) == "model"
    types = get_type_hints(Arguments)
    for one in nonempty(fields(Arguments)):
        default = inspect.Parameter.empty if one.default is MISSING else one.default
        assert (seen[one.name].default, seen[one.name].annotation) == (default, types[one.name])
    told = one_line(door.__doc__)
    texts = docs_of(OptimizeRequest)
    assert [name for name in (*NAMES, "settings") if f" {name}: {one_line(texts[name])}" not in told] == []


def test_the_config_has_every_plain_argument_as_it_is_and_a_text_for_every_object_that_can_be_named():
    own = {f.name: f for f in fields(RunConfig)}
    for one in nonempty(fields(PlainArguments)):
        assert own[one.name].default == one.default
        assert text_of(one.name) == summary(docs_of(Arguments)[one.name])
    unnamed = set(NAMES) - set(own)
    assert unnamed == {"config", "example_kwargs", "batch_dims", "callbacks", "verbose"}


def test_the_flags_have_the_names_texts_and_defaults():
    declared = arguments_of(RunConfig)
    assert set(declared) == {f.name for f in fields(RunConfig)} <= set(OPTIONS)
    for name in nonempty(declared.keys() - {"model"}):
        option = OPTIONS[name]
        assert flag(name) in option.opts
        assert option.default in ({None, False} if declared[name].metavar == "" else {None})
        text = (declared[name].help or text_of(name)).replace("`", "").removesuffix(".")
        assert option.help.startswith(text)
        default = getattr(RunConfig, name, None)
        assert (f"; {default} by default" in option.help) == (type(default) is int)


def test_a_flag_that_turns_off_what_is_on_by_default_does_so(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    monkeypatch.chdir(tmp_path)
    given = CliRunner().invoke(app, ["optimize", "a:b", "--not-trained", "--resume", "--print-config"])
    assert '"trained": false' in given.stdout
    assert '"resume": true' in given.stdout


def test_the_identity_of_a_run_has_what_the_declaration_says():
    x = (torch.randn(16, 3, 8, 8), torch.arange(16) % 4)
    request = OptimizeRequest(net(), train_data=x, val_data=x, seed=7, batch_size=4, verbose=False, workers=None)
    asked = prepare(request).asked
    given = {name for name, one in DECLARED.items() if one.recorded == "as given"}
    resolved = {KEYS.get(name, name) for name, one in DECLARED.items() if one.recorded == "resolved"}
    beside = {"data_free", "task", "model", "fingerprint", "environment"}
    assert set(asked) == given | resolved | beside
    assert {name: asked[name] for name in nonempty(given)} == {name: getattr(request, name) for name in given}
    assert (asked["seed"], asked["batch_size"], asked["budget"]) == (7, 4, {"macs": 0.5})
    assert asked["settings"].keys() == {f.name for f in fields(Dnal)}


def test_every_method_can_be_named():
    [name, _] = get_args(MethodName)
    assert list(get_args(name)) == nonempty(METHODS)


def test_the_signature_for_a_type_checker_has_every_argument_and_setting():
    seen = {f.name: f for f in fields(Signature)}
    settings = {f.name for method in METHODS.values() for f in fields(method.settings)}
    assert seen.keys() == set(NAMES) | settings
    assert not set(NAMES) & settings
    dnal = {f.name: f.default for f in fields(Dnal)}
    assert {name: seen[name].default for name in dnal} == dnal


SCRIPT = """
from typing import assert_type

import torch
from torch import nn

import fxsurgery
from fxsurgery import Budget, Dnal, Ectonas, Plan, Prune, Result, Spend

model = nn.Linear(3, 4)
data = (torch.zeros(8, 3), torch.zeros(8))
assert_type(fxsurgery.optimize(model), Result)
assert_type(fxsurgery.plan(model, budget=Budget(macs=0.5)), Plan)
fxsurgery.optimize(model, method="prune", train_data=data, val_data=data, importance="taylor", rounds=3, align=4)
fxsurgery.optimize(model=model, config=Ectonas(greediness=0.5), spend=Spend(epochs=3), executor="processes", workers=2)
fxsurgery.optimize(model, config=Dnal(penalty=0.1), batch_dims={"text": None}, run_dir="runs/a", resume=True)
Prune(between=0.5, scope="local")
"""
WRONG = {
    "fxsurgery.optimize()": 'Missing positional argument "model"',
    "fxsurgery.optimize(model, bugdet=Budget(macs=0.5))": 'Unexpected keyword argument "bugdet"',
    'fxsurgery.optimize(model, batch_size="8")': 'Argument "batch_size" to "optimize" has incompatible type',
    'fxsurgery.optimize(model, method="magic")': 'Argument "method" to "optimize" has incompatible type',
    'fxsurgery.plan(model, importance="taylors")': 'Argument "importance" to "plan" has incompatible type',
    "fxsurgery.optimize(model, budget=0.5)": 'Argument "budget" to "optimize" has incompatible type',
    "Dnal(aling=4)": 'Unexpected keyword argument "aling"',
    'Prune(rounds="3")': 'Argument "rounds" to "Prune" has incompatible type',
    'Ectonas(front="size")': 'Argument "front" to "Ectonas" has incompatible type',
}


def test_a_type_checker_sees_the_arguments_of_optimize_and_of_each_settings(tmp_path: Path):
    script = tmp_path / "use.py"
    script.write_text(SCRIPT + "\n".join(WRONG) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--no-pretty", str(script)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=500).stdout
    first = SCRIPT.count("\n") + 1
    found = dict[int, str]()
    for line in told.splitlines():
        if ": error: " in line:
            where, _, what = line.partition(": error: ")
            found.setdefault(int(where.rpartition(":")[2]), what)
    assert sorted(found) == [*range(first, first + len(WRONG))], told
    assert [what for line, what in zip(found, WRONG.values(), strict=True) if not found[line].startswith(what)] == []


@pytest.mark.parametrize(
    ("given", "kind", "path"),
    [
        ({"batch_size": 0}, DataError, ("batch_size",)),
        ({"budget": 0.5}, fxsurgery.BudgetError, ("budget",)),
        ({"example_inputs": 3}, DataError, ("example_inputs",)),
        ({"run_dir": ""}, fxsurgery.RunError, ("run_dir",)),
        ({"method": "magic"}, SurgeryError, ("method",)),
        ({"resume": True, "train_data": None, "val_data": None}, SurgeryError, ("resume",)),
        ({"spend": Spend(epochs=3)}, SurgeryError, ("spend",)),
        ({"val_data": None}, DataError, ("val_data",)),
        ({"train_data": None, "val_data": None, "loss": nn.MSELoss()}, DataError, ("loss",)),
    ],
)
def test_an_error_carries_the_path_of_its_argument(given, kind, path):
    x = (torch.randn(16, 3, 8, 8), torch.arange(16) % 4)
    with pytest.raises(kind) as told:
        fxsurgery.optimize(net(), **{"train_data": x, "val_data": x, "verbose": False, **given})
    assert told.value.path == path
    assert path[0] in str(told.value)


def test_arguments_by_position_and_unknown_ones_are_refused():
    with pytest.raises(TypeError, match="model"):
        fxsurgery.optimize()
    with pytest.raises(TypeError, match="takes only model by position"):
        fxsurgery.optimize(net(), "prune")
    with pytest.raises(SurgeryError, match=r"optimize takes no 'bugdet'.*did you mean budget=\?"):
        fxsurgery.optimize(net(), bugdet=Budget(macs=0.5))
