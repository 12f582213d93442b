"""The surroundings of a call change no result: every model of the zoo, in every surrounding, and from threads.

The quick part takes each surrounding once and each model once; the sweep takes all pairs.
"""

import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fxsurgery
from conformance.surroundings import SURROUNDINGS, state
from fxsurgery import Budget, Program, Task, capture, optimize, passes
from fxsurgery.capture import guess_inputs
from fxsurgery.saving import load_program, save_program
from fxsurgery.training import evaluate, recalibrate
from nonempty import nonempty
from zoo import ZOO, example

pytestmark = pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
SECONDS = 120
NAMES, KINDS = tuple(ZOO), tuple(SURROUNDINGS)
QUICK = [(NAMES[i % len(NAMES)], KINDS[i % len(KINDS)]) for i in range(max(len(NAMES), len(KINDS)))]


@functools.cache
def plain(name: str) -> Program:
    return capture(ZOO[name](), example(name))


def require_same(found: Program, name: str) -> None:
    wanted = plain(name)
    assert found.text() == wanted.text()
    assert found.notes == wanted.notes
    for got, want in nonempty(zip(found.run_examples(), wanted.run_examples(), strict=True)):
        assert torch.equal(got, want)
    ours, theirs = found.graph_module.state_dict(), wanted.graph_module.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in nonempty(ours))
    assert not any(t.is_inference() for t in nonempty((*ours.values(), *found.examples.tensors)))


def capture_in(name: str, kind: str) -> None:
    model, x = ZOO[name](), example(name)
    plain(name)
    with SURROUNDINGS[kind]():
        before = state()
        found = capture(model, x)
        assert state() == before
    require_same(found, name)


@pytest.mark.parametrize(("name", "kind"), QUICK)
def test_a_capture_is_the_same_in_any_surrounding(name: str, kind: str) -> None:
    capture_in(name, kind)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_every_capture_is_the_same_in_every_surrounding(name: str, kind: str) -> None:
    capture_in(name, kind)


def test_captures_of_several_threads_are_the_same_each_in_a_surrounding_of_its_own() -> None:
    """Those that PyTorch keeps by thread."""
    kinds = ("autocast", "inference_mode", "device block", "function mode", "dispatch mode")
    barrier, errors = threading.Barrier(len(kinds)), list[BaseException]()
    models = {name: ZOO[name]() for name in NAMES[: len(kinds)]}
    for name in models:
        plain(name)

    def work(name: str, kind: str) -> None:
        x = example(name)
        try:
            barrier.wait(SECONDS)
            with SURROUNDINGS[kind]():
                found = capture(models[name], x)
            require_same(found, name)
        except BaseException as error:  # noqa: BLE001 -- shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(models, kinds, strict=True)]
    before = state()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    if errors:
        raise errors[0]
    assert state() == before


X = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 4


def _net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.1),
            nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip


MODEL = _net()

ARGUMENTS: dict[str, Any] = {
    "method": "prune", "train_data": (X, Y), "val_data": (X, Y), "budget": Budget(macs=0.6), "fewest_steps": 0,
    "most_steps": 3, "verbose": False,
}  # fmt: skip


def weights(model: nn.Module) -> list[Any]:
    return [(name, tensor.tolist()) for name, tensor in model.state_dict().items()]


def optimized(folder: Path) -> object:
    result = optimize(MODEL, **ARGUMENTS)
    return weights(result.model), str(result.metrics), result.notes


def in_bf16(folder: Path) -> object:
    return weights(optimize(MODEL, **ARGUMENTS, mixed_precision="bf16").model)


def planned(folder: Path) -> object:
    found = fxsurgery.plan(MODEL, **ARGUMENTS)
    return found.stages, found.notes


def passed(folder: Path) -> object:
    program = capture(MODEL, X)
    made = [passes.FoldBn()(program).program, next(iter(passes.Widen.candidates(program)))(program).program]
    return [(program.text(), weights(program.graph_module)) for program in made]


def scored(folder: Path) -> object:
    task, copied = Task.of((X, Y), (X, Y)), capture(MODEL, X).trainable_copy()
    score = evaluate(copied, task)
    recalibrate(copied, task, batches=2)
    return score, weights(copied)


def inspected(folder: Path) -> object:
    return str(fxsurgery.inspect(MODEL, X)), guess_inputs(MODEL)[1]


def saved(folder: Path) -> object:
    program = capture(MODEL, X)
    save_program(program, folder / "program")
    again = load_program(folder / "program")
    result = fxsurgery.Result(program, program, "accuracy", {})
    result.save(folder / "result")
    loaded = fxsurgery.load(folder / "result")
    return again.text(), weights(again.graph_module), weights(loaded.model), weights(loaded.replay(MODEL))


def exported(folder: Path) -> object:
    program = capture(MODEL, X)
    result = fxsurgery.Result(program, program, "accuracy", {})
    return [result.export_onnx(folder / f"{name}.onnx", exporter=name).sha256 for name in ("legacy",)]


def standalone(folder: Path) -> object:
    program = capture(MODEL, X)
    fxsurgery.Result(program, program, "accuracy", {}).save_standalone(folder / "alone")
    return (folder / "alone" / "model.py").read_text(), (folder / "alone" / "weights.safetensors").read_bytes()


WORK: dict[str, Callable[[Path], object]] = {
    f.__name__: f for f in (inspected, planned, optimized, in_bf16, passed, scored, saved, exported, standalone)
}


@functools.cache
def plainly(work: str, folder: Path) -> object:
    return WORK[work](folder)


def do_in(work: str, kind: str, folder: Path) -> None:
    for name in ("plain", "there"):
        (folder / name).mkdir()
    wanted = plainly(work, folder / "plain")
    with SURROUNDINGS[kind]():
        before = state()
        found = WORK[work](folder / "there")
        assert state() == before
    assert found == wanted


@pytest.mark.parametrize("work", WORK)
def test_all_work_is_the_same_in_several_surroundings_at_once(work: str, tmp_path: Path) -> None:
    do_in(work, "several at once", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("work", WORK)
def test_all_work_is_the_same_in_every_surrounding(work: str, kind: str, tmp_path: Path) -> None:
    do_in(work, kind, tmp_path)
