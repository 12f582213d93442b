"""`optimize` and exports in threads: each run gives what it gives alone, in any thread, and no other thread notices."""

import asyncio
import functools
import sys
import threading
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from torch import nn

from fxsurgery import Budget, Spend, optimize
from fxsurgery.deploy import export_onnx


def in_threads(*work):
    """What each piece of work gives, each in a thread of its own, begun at once."""
    barrier, found, errors = threading.Barrier(len(work)), [None] * len(work), []

    def run(number):
        try:
            barrier.wait(60)
            found[number] = work[number]()
        except BaseException as error:  # noqa: BLE001 -- raised below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    if errors:
        raise errors[0]
    return found


def model() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Dropout(0.3), nn.Conv2d(16, 16, 3),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
        )  # fmt: skip


MODEL = model()


def threaded(seed, **more):
    """A short run on a model with dropout, whose weights tell of every random number."""
    x = torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = (x, torch.arange(48) % 4)
    arguments = {"method": "prune", "budget": Budget(macs=0.6), "fewest_steps": 0, "most_steps": 8, **more}
    result = optimize(MODEL, train_data=data, val_data=data, batch_size=8, seed=seed, verbose=False, **arguments)
    return [(name, tensor.tolist()) for name, tensor in result.model.state_dict().items()]


def test_runs_in_several_threads_give_what_each_gives_alone():
    alone = [threaded(seed) for seed in range(3)]
    assert alone[0] != alone[1]
    before = torch.get_rng_state()
    assert in_threads(*(functools.partial(threaded, seed) for seed in range(3))) == alone
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_processes_can_be_started_from_a_thread():
    [found] = in_threads(lambda: evolved(executor="processes", workers=2))
    assert found == evolved()


def evolved(**more):
    x = torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    data = (x, torch.arange(32) % 4)
    result = optimize(
        MODEL, method="ectonas", spend=Spend(epochs=12), train_data=data, val_data=data, verbose=False, **more
    )
    return [(name, tensor.tolist()) for name, tensor in result.model.state_dict().items()]


def test_a_callers_autocast_changes_neither_the_training_nor_what_is_told_of_it():
    alone = threaded(0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert threaded(0) == alone
        assert torch.is_autocast_enabled("cpu")


def test_a_running_event_loop_is_no_matter():
    async def run():
        return threaded(0)

    assert asyncio.run(run()) == threaded(0)


def test_what_other_threads_print_during_an_export_is_seen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Printing(nn.Module):
        """Prints, and lets another thread print; the exporters run its forward."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sys.stdout.write("the model's\n")
            thread = threading.Thread(target=lambda: sys.stdout.write("another thread's\n"))
            thread.start()
            thread.join(60)
            return torch.relu(x)

    before = sys.stdout
    export_onnx(Printing(), (torch.randn(2, 3),), tmp_path / "model.onnx", exporter="legacy", check=False)
    assert sys.stdout is before
    lines = capsys.readouterr().out.splitlines()
    assert lines.count("another thread's") > lines.count("the model's")


def test_an_accelerator_of_another_thread_works_on_while_this_one_trains() -> None:
    theirs = Accelerator(cpu=True, gradient_accumulation_steps=3)
    seen = list[object]()

    def loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        thread = threading.Thread(
            target=lambda: seen.append((theirs.device.type, theirs.gradient_accumulation_steps, theirs.mixed_precision))
        )
        thread.start()
        thread.join(60)
        return nn.functional.cross_entropy(output, target)

    threaded(0, loss=loss)
    assert set(seen) == {("cpu", 3, "no")}
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
