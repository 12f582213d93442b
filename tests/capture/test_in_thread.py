"""Capture in several threads: what one thread traces or records, no other thread notices."""

import copy
import functools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from fxsurgery.capture import capture
from fxsurgery.capture.in_thread import TrueInThisThread
from fxsurgery.program import Program
from nonempty import nonempty

SECONDS = 120
COUNT = 20


@fx.wrap
def wrapped(x):
    return x + 1


def whole(x):
    """Becomes a leaf: its result depends on a value."""
    return x * 2 if float(x.detach().sum()) > 0 else x


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return 3 * ctx.saved_tensors[0] ** 2 * gradient


class Served(nn.Module):
    """Uses everything that a capture patches: module calls, parameters, constructors, flags, wrapped functions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.ones(2))
        self.layer = nn.TransformerEncoderLayer(2, 1, 4, batch_first=True)

    def forward(self, x):
        assert not torch.compiler.is_compiling()
        assert not torch.compiler.is_exporting()
        y = self.fc(torch.relu(self.conv(x)).mean((2, 3))) * self.scale
        y = wrapped(Cube.apply(y)) + torch.arange(2) + whole(y.abs() + 1)
        return self.layer(y[:, None], src_mask=torch.zeros(1, 1))


class Traced(nn.Module):
    """Can be traced symbolically."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x):
        return wrapped(self.fc(torch.relu(self.conv(x)).mean((2, 3)))) + torch.arange(2)


class Recorded(nn.Module):
    """Cannot be traced symbolically, and has a function that becomes a leaf."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, x, *, bias=None):
        y = self.fc(torch.relu(self.conv(x)).mean((2, 3)))
        for _ in range(len(y.shape)):
            y = y + bias
        return whole(y.abs() + 1)


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
FRONT_ENDS: dict[str, Callable[[], Program]] = {
    "traced": lambda: capture(built(Traced), X),
    "recorded": lambda: capture(built(Recorded), X, example_kwargs={"bias": torch.ones(1)}),
}


def built(kind: type[nn.Module]) -> nn.Module:
    return copy.deepcopy(original(kind))


@functools.cache
def original(kind: type[nn.Module]) -> nn.Module:
    """Created once: threads share one random number generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval()


def in_threads(*work: Callable[[], Any]) -> list[Any]:
    """Run all functions at the same time and return their results."""
    barrier, found, errors = threading.Barrier(len(work)), [None] * len(work), list[BaseException]()

    def run(number: int) -> None:
        try:
            barrier.wait(SECONDS)
            found[number] = work[number]()
        except BaseException as error:  # noqa: BLE001 -- shown below
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS)
    if errors:
        raise errors[0]
    assert not any(thread.is_alive() for thread in nonempty(threads))
    return found


@pytest.mark.parametrize("name", FRONT_ENDS)
def test_another_thread_serves_its_model_while_this_one_captures(name: str) -> None:
    model = built(Served)
    want, stop, wanted = model(X).detach(), threading.Event(), FRONT_ENDS[name]().text()

    def serve() -> int:
        served = 0
        while not stop.is_set() or not served:
            assert torch.allclose(model(X), want)
            served += 1
        return served

    def work() -> None:
        try:
            for _ in range(COUNT):
                assert FRONT_ENDS[name]().text() == wanted
        finally:
            stop.set()

    served, _ = in_threads(serve, work)
    assert served


def test_a_model_is_served_from_inside_of_a_capture() -> None:
    """The window in which everything is replaced, for certain."""
    served, wanted = built(Served), built(Served)(X)
    found = list[torch.Tensor]()

    class Meeting(Traced):
        def forward(self, x):
            thread = threading.Thread(target=lambda: found.append(served(X)))
            thread.start()
            thread.join(SECONDS)
            return super().forward(x)

    capture(built(Meeting), X)
    assert len(found) > 3
    assert all(torch.allclose(output, wanted) for output in nonempty(found))


def test_several_threads_capture_at_once() -> None:
    wanted = {name: make() for name, make in FRONT_ENDS.items()}

    def work(name: str) -> list[Program]:
        return [FRONT_ENDS[name]() for _ in range(5)]

    names = [*FRONT_ENDS, *FRONT_ENDS]
    for name, programs in zip(names, in_threads(*((lambda name=name: work(name)) for name in names)), strict=True):
        for program in nonempty(programs):
            assert program.text() == wanted[name].text()
            assert torch.equal(program.run_examples()[0], wanted[name].run_examples()[0])


def test_nothing_stays_replaced() -> None:
    before = nn.Module.__call__, nn.Module.__getattr__, torch.arange, wrapped, whole, fx._symbolic_trace._Patcher
    for make in FRONT_ENDS.values():
        in_threads(make, make)
    after = nn.Module.__call__, nn.Module.__getattr__, torch.arange, wrapped, whole, fx._symbolic_trace._Patcher
    assert after == before
    assert torch.compiler._is_compiling_flag is False


def test_a_flag_of_one_thread_computes_as_a_bool() -> None:
    flag = TrueInThisThread()

    def values() -> list[object]:
        return [bool(flag), flag | False, False | flag, flag & True, True & flag, flag ^ True, flag == True, str(flag)]  # noqa: E712

    assert values() == [True, True, True, True, True, False, True, "True"]
    assert in_threads(values) == [[False, False, False, False, False, True, False, "False"]]
