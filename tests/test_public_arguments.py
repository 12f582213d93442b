"""Every argument of every public function and class: a wrong value does as documented, or is one error of ours.

The cases are generated from signatures. Passes, and `optimize` itself, are in `test_option_types.py`.
"""

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import nn

import fxsurgery
from fxsurgery import ArgumentError, Budget, Program, Result, Spend, SurgeryError, Task, deploy, training
from fxsurgery.deploy import LatencyReport, OnnxModel
from nonempty import nonempty

WRONG: dict[str, Any] = {
    "None": None, "a number as text": "3", "no as text": "no", "minus one": -1, "nan": math.nan, "a list": [1],
    "an object": object(),
}  # fmt: skip
X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(8) % 4


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


@cache
def task() -> Task:
    return Task.of((X, Y), (X, Y), batch_size=4)


@cache
def program() -> Program:
    return fxsurgery.capture(net(), X)


QUICK: dict[str, Any] = {
    "method": "prune", "train_data": (X, Y), "val_data": (X, Y), "fewest_steps": 0, "most_steps": 1, "align": 1,
    "verbose": False, "device": "cpu",
}  # fmt: skip


@cache
def result() -> Result:
    return fxsurgery.optimize(net(), **QUICK)


@cache
def report() -> LatencyReport:
    return result().benchmark(rounds=3, seconds=1.0)


def saved(folder: Path) -> Path:
    result().save(folder / "saved")
    return folder / "saved"


def file(folder: Path) -> OnnxModel:
    return result().export_onnx(folder / "known.onnx", exporter="legacy")


def recipe() -> training.Recipe:
    return training.Recipe(steps=1, optimizer=training.sgd(0.1))


def scheduled(make: Callable[..., training.Schedule]) -> Callable[..., Any]:
    def call(**given: Any) -> list[float]:
        return [make(**given)(share) for share in (0.0, 0.5, 1.0)]

    return call


def optimizing(make: Callable[..., training.OptimizerFactory]) -> Callable[..., Any]:
    return lambda **given: make(**given)(net().parameters()).step()


@dataclass(frozen=True)
class Case:
    """A public function or class, and arguments that it takes."""

    public: Callable[..., Any]
    given: Callable[[Path], dict[str, Any]]
    call: Callable[..., Any] | None = None
    """Calls it and uses what it returns, where that is a function."""
    but: tuple[str, ...] = ()
    """Arguments that are not tried: any value is right, or another test tries them."""

    @property
    def names(self) -> list[str]:
        parameters = inspect.signature(self.public).parameters.values()
        return [p.name for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in {"self", *self.but}]

    def __call__(self, scratch: Path, /, **changed: Any) -> Any:
        return (self.call or self.public)(**self.given(scratch) | changed)


def method(name: str, **given: Any) -> Case:
    public = getattr(Result, name)
    return Case(public, lambda _: given, lambda **arguments: public(result(), **arguments))


CASES = [
    Case(fxsurgery.plan, lambda _: {"model": net(), **QUICK}, but=("train_data", "val_data", "test_data", "metric")),
    Case(fxsurgery.capture, lambda _: {"model": net(), "example_inputs": X},
         lambda more_inputs=(), **given: fxsurgery.capture(**given), ("more_inputs",)),
    Case(fxsurgery.inspect, lambda _: {"model": net(), "example_inputs": X}),
    Case(fxsurgery.load, lambda folder: {"folder": saved(folder)}),
    Case(Budget, lambda _: {"macs": 0.5}), Case(Spend, lambda _: {"epochs": 3}),
    Case(fxsurgery.Dnal, lambda _: {}), Case(fxsurgery.Prune, lambda _: {}), Case(fxsurgery.Ectonas, lambda _: {}),
    Case(Task.of, lambda _: {"train_data": (X, Y), "val_data": (X, Y)}),
    Case(Task, lambda _: {"train_data": task().train_data, "val_data": task().val_data}),
    Case(Program, lambda _: {"graph_module": program().graph_module, "example_inputs": (X,)}),
    method("save", folder="saved"), method("save_standalone", folder="alone"), method("member", number=0),
    method("replay", original=net()), method("report", path="a.html"),
    method("export_onnx", path="a.onnx", exporter="legacy"), method("benchmark", rounds=3, seconds=1.0),
    Case(training.Recipe, lambda _: {"steps": 1, "optimizer": training.sgd(0.1)}),
    Case(training.Hooks, lambda _: {}), Case(training.Amount, lambda _: {}),
    Case(training.sgd, lambda _: {"lr": 0.1}, optimizing(training.sgd)),
    Case(training.adamw, lambda _: {"lr": 0.1}, optimizing(training.adamw)),
    Case(training.cosine, lambda _: {}, scheduled(training.cosine)),
    Case(training.constant, lambda _: {}, scheduled(training.constant)),
    Case(training.linear, lambda _: {}, scheduled(training.linear)),
    Case(training.one_cycle, lambda _: {}, scheduled(training.one_cycle)),
    Case(training.schedule_of, lambda _: {"schedule": "cosine"}, scheduled(training.schedule_of), ("schedule",)),
    Case(training.steps_at, lambda _: {"milestones": (0.5,)}, scheduled(training.steps_at)),
    Case(training.steps_for, lambda _: {"task": task(), "epochs": 2}),
    Case(training.fit, lambda _: {"model": net(), "task": task(), "recipe": recipe(), "device": "cpu"}),
    Case(training.evaluate, lambda _: {"model": net(), "task": task(), "device": "cpu"}),
    Case(training.recalibrate, lambda _: {"model": net(), "task": task(), "device": "cpu"}),
    Case(training.resolve, lambda _: {"device": "cpu"}),
    Case(training.from_rank_zero, lambda _: {"make": int}),
    Case(deploy.export_onnx, lambda folder: {"model": net(), "example_inputs": X, "path": folder / "a.onnx",
                                             "exporter": "legacy"}),
    Case(deploy.check_parity, lambda folder: {"model": result().model, "example_inputs": X,
                                              "onnx_path": file(folder).path}),
    Case(deploy.compare_latency, lambda folder: {"models": {"a": file(folder)}, "example_inputs": X, "rounds": 3,
                                                 "seconds": 1.0}),
    Case(deploy.compare_programs, lambda _: {"programs": {"a": program()}, "device": "local",
                                             "options": {"rounds": 3, "seconds": 1.0}}),
    Case(deploy.resolve_target, lambda _: {"spec": "local"}), Case(deploy.parse, lambda _: {"text": "export"}),
    Case(deploy.Export, lambda _: {}), Case(deploy.Check, lambda _: {}), Case(deploy.Measure, lambda _: {}),
    Case(deploy.Chain, lambda _: {"steps": (deploy.Export(),)}),
    Case(deploy.Chain.run, lambda folder: {"model": net(), "example_inputs": X, "path": folder / "a.onnx"},
         lambda **given: deploy.parse("export(exporter='legacy')").run(**given)),
]  # fmt: skip

MADE_BY_US = {
    "Batch", "Checkpointer", "Cost", "Deployed", "FitReport", "Inspection", "Latency", "LatencyReport", "Measurement",
    "Objective", "OnnxModel", "Parity", "Plan", "Progress", "Result", "Score", "StepInfo", "Synthetic", "Target",
    "Terms", "Timer", "Transform",
}  # fmt: skip
"""Results, and protocols to implement: users read them, and construct none."""
PARTS_OF_A_SEARCHER = {
    "FeatureDistillation", "SandwichObjective", "distilled_task", "report_of", "require_factors",
    "synthetic_inputs", "task_objective", "transfer_optimizer_state",
}  # fmt: skip
"""What writers of searchers use; tests of their own show how."""


def test_every_public_function_and_class_is_tried_or_accounted_for():
    public = {
        name: getattr(module, name) for module in (fxsurgery, training, deploy) for name in nonempty(module.__all__)
    }
    errors = {name for name, made in public.items() if isinstance(made, type) and issubclass(made, Exception)}
    takes = {name for name, made in public.items() if callable(made) and not hasattr(made, "__origin__")}
    tried = {case.public.__qualname__.partition(".")[0] for case in CASES} | {"optimize"}
    constants = {name for name in takes if not nonempty_signature(public[name])}
    assert takes - errors - tried - constants - MADE_BY_US - PARTS_OF_A_SEARCHER == set()


def nonempty_signature(made: Callable[..., Any]) -> bool:
    try:
        return bool(inspect.signature(made).parameters)
    except (TypeError, ValueError):
        return False


TRIED = [pytest.param(case, name, id=f"{case.public.__qualname__}-{name}") for case in CASES for name in case.names]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.public.__qualname__)
def test_the_call_works_as_it_is(case: Case, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    has_none = case.public is Result.member
    error = raised_by(case, tmp_path)
    assert (error is not None) == has_none, error
    assert not has_none or "no Pareto front" in str(error)


def raised_by(case: "Case", folder: Path) -> Exception | None:
    """The exception that a call ends with."""
    try:
        case(folder)
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is the finding
        return error
    return None


@pytest.mark.parametrize(("case", "name"), TRIED)
def test_a_wrong_value_does_as_documented_or_is_one_error_of_ours(case: Case, name: str, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = dict[str, str]()
    for what, value in WRONG.items():
        try:
            case(tmp_path, **{name: value})
        except SurgeryError as error:
            said[what] = str(error)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is the finding
            pytest.fail(f"{name}={what}: {type(error).__name__}: {error}")
    assert "" not in said.values(), said


def hints_of(public: Any) -> dict[str, Any]:
    return get_type_hints(public.__init__ if isinstance(public, type) else public)


SWITCHES = [
    pytest.param(case, name, id=f"{case.public.__qualname__}-{name}")
    for case in CASES
    for name in case.names
    if hints_of(case.public).get(name) is bool
]


@pytest.mark.parametrize(("case", "name"), nonempty(SWITCHES))
@pytest.mark.parametrize("value", ["no", "False", "", 0, 1, None, [], math.nan], ids=repr)
def test_what_is_neither_true_nor_false_is_refused_by_name(case: Case, name: str, value: object, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SurgeryError, match=rf"{name}=.*: it must be True or False"):
        case(tmp_path, **{name: value})


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.public.__qualname__)
def test_a_name_that_does_not_exist_is_answered_with_the_one_meant(case: Case, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = case.names[-1]
    with pytest.raises(ArgumentError, match=rf"{name}s.*; did you mean .*\?|{name}s.*; it takes: "):
        case(tmp_path, **{f"{name}s": 1})
