"""Turns: threads take them in order, give way without losing what they borrowed, and a fork forgets other threads."""

import functools
import os
import random
import threading

import numpy as np
import pytest
import torch

from fxsurgery.seeding import reseed, seeded
from fxsurgery.turns import TURNS, Turns

CPU = torch.device("cpu")
SECONDS = 60


class Slot:
    """A loan of one value."""

    process = "outside"

    def __init__(self, value: str) -> None:
        self.kept, Slot.process = Slot.process, value

    def swap(self) -> None:
        self.kept, Slot.process = Slot.process, self.kept


def test_the_same_thread_takes_a_turn_again_and_a_loan_goes_back_after_an_error() -> None:
    turns = Turns()

    def fail() -> None:
        with turns.turn(), turns.borrowed(Slot("a")):
            with turns.turn(), turns.borrowed(Slot("b")):
                assert Slot.process == "b"
            assert Slot.process == "a"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert Slot.process == "outside"
    with turns.turn():  # which nobody holds any more
        pass


def test_one_that_gives_way_lets_those_that_wait_go_first_in_their_order_and_finds_its_loans_again() -> None:
    turns, seen = Turns(), list[str]()

    def work(name: str) -> None:
        with turns.turn():
            seen.append(f"{name} found {Slot.process}")
            with turns.borrowed(Slot(name)):
                seen.append(Slot.process)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("second", "third")]
    with turns.turn(), turns.borrowed(Slot("first")), turns.borrowed(Slot("inner")):
        turns.give_way()
        assert Slot.process == "inner", "nobody waits"
        for number, thread in enumerate(threads, 1):
            thread.start()
            wait_until(functools.partial(lambda many: len(turns._waiting) == many, number))
        turns.give_way()
        assert Slot.process == "inner"
        assert seen == ["second found outside", "second", "third found outside", "third"]
    for thread in threads:
        thread.join(SECONDS)
    assert Slot.process == "outside"


def wait_until(holds) -> None:
    waited = threading.Event()
    for _ in range(SECONDS * 100):
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("waited too long")


def test_seeded_blocks_of_two_threads_draw_what_each_draws_alone() -> None:
    def draws(seed: int, found: list[float]) -> None:
        with seeded(seed, CPU):
            for _ in range(50):
                found += [float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002
                TURNS.give_way()

    alone: list[list[float]] = [[], []]
    for seed in range(2):
        draws(seed, alone[seed])
    together: list[list[float]] = [[], []]
    before = torch.get_rng_state(), random.getstate()
    threads = [threading.Thread(target=draws, args=(seed, together[seed])) for seed in range(2)]
    with TURNS.turn():
        for thread in threads:
            thread.start()
        wait_until(lambda: len(TURNS._waiting) == 2)
    for thread in threads:
        thread.join(SECONDS)
    assert together == alone
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_does_not_wait_for_a_thread_that_it_has_not() -> None:
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with seeded(0, CPU):
            held.set()
            done.wait(SECONDS)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(SECONDS)
    child = os.fork()
    if not child:
        with seeded(1, CPU):
            reseed(2, CPU)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    done.set()
    thread.join(SECONDS)
