"""Plain surroundings: nothing of the caller's holds inside, and all of it holds again outside."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from conformance.surroundings import SURROUNDINGS, state
from fxsurgery import DataError, Task, TrainingError, capture
from fxsurgery.surroundings import left_outside, plain_surroundings, without_warnings
from fxsurgery.training import Recipe, fit, recalibrate, sgd

KEPT = {"torch", "python", "numpy", "deterministic", "precision", "warnings"}
"""Settings that hold inside as well."""
SECONDS = 60
pytestmark = pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_inside_all_is_plain_and_outside_all_is_as_before(name: str) -> None:
    with SURROUNDINGS[name]():  # which may import something that sets warning filters
        pass
    plain = state()
    with SURROUNDINGS[name]():
        before = state()
        with plain_surroundings():
            inside = state()
        assert state() == before
        with pytest.raises(ZeroDivisionError), plain_surroundings():
            raise ZeroDivisionError
        assert state() == before
    assert state() == plain
    assert [key for key in plain if inside[key] != plain[key] and key not in KEPT] == []


def test_surroundings_that_are_entered_inside_hold_there() -> None:
    layer, x = nn.Linear(4, 4), torch.randn(2, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), plain_surroundings():
        assert layer(x).dtype is torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
        with torch.no_grad(), plain_surroundings():
            assert layer(x).requires_grad


def test_an_autocast_inside_casts_the_weights_that_it_finds() -> None:
    """Nested regions share a cache, which would give weights as they were before a step."""
    layer, x = nn.Linear(4, 4, bias=False), torch.ones(1, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x)
        with plain_surroundings():
            for value in (1.0, 2.0):
                with torch.no_grad():
                    layer.weight.fill_(value)
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    assert float(layer(x)[0, 0].detach()) == 4 * value
        assert float(layer(x)[0, 0].detach()) == 8.0


def test_what_the_process_has_once_is_put_back_by_the_last_thread() -> None:
    inside, leave, done = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        with plain_surroundings():
            inside.set()
            leave.wait(SECONDS)
        done.set()

    with SURROUNDINGS["default dtype"]():
        thread = threading.Thread(target=work)
        with plain_surroundings():
            thread.start()
            assert inside.wait(SECONDS)
        assert torch.get_default_dtype() is torch.float32, "the other thread still works"
        leave.set()
        assert done.wait(SECONDS)
        assert torch.get_default_dtype() is torch.float64
        thread.join(SECONDS)


class Eye(nn.Module):
    """Makes a tensor of the default dtype, on the default device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.eye(x.shape[1])


def test_a_model_that_needs_the_callers_default_dtype_is_refused_with_the_remedy() -> None:
    told = "the caller's default dtype torch.float64 does not hold inside fxsurgery: give dtype="
    with SURROUNDINGS["default dtype"]():
        before = state()
        with pytest.raises(DataError, match=told):
            capture(Eye(), torch.ones(2, 4))
        assert state() == before


@pytest.mark.parametrize(
    ("name", "told"),
    [("device block", "default device meta"), ("autocast", "torch.autocast"), ("function mode", "Doubling")],
)
def test_what_stays_outside_is_named(name: str, told: str) -> None:
    with SURROUNDINGS[name](), plain_surroundings(), plain_surroundings():
        assert f"the caller's {told} does not hold" in left_outside()
    with plain_surroundings():
        assert not left_outside()


@pytest.mark.parametrize(
    "work",
    [
        lambda model, task: fit(model, task, Recipe(steps=1, optimizer=sgd(0.1))),
        recalibrate,
    ],
)
def test_a_model_made_in_inference_mode_is_captured_and_refused_where_it_would_be_changed(
    work: Callable[[nn.Module, Task], object],
) -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        x = torch.randn(8, 4)
        program = capture(model, x)
        copied = program.trainable_copy()
    task = Task.of((x, torch.arange(8) % 4), (x, torch.arange(8) % 4))
    work(copied, task)
    with pytest.raises(TrainingError, match=r"`0.weight` of the model was made in torch.inference_mode"):
        work(model, task)


def test_warnings_are_ignored_by_one_thread_after_the_other() -> None:
    """Two at once would leave the filters of one to the process."""
    import warnings

    before, barrier = list(warnings.filters), threading.Barrier(4)

    def work() -> None:
        barrier.wait(SECONDS)
        for _ in range(200):
            with without_warnings():
                warnings.warn("unheard", stacklevel=1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    assert list(warnings.filters) == before
    with np.errstate(all="raise"), plain_surroundings(), without_warnings():
        assert np.isinf(np.float64(1) / np.float64(0))
