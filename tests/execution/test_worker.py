"""The work on a job: on a single thread, whose number is given back."""

import threading

import torch

from fxsurgery.execution.worker import one_thread

SECONDS = 60


def test_the_number_of_threads_comes_back_after_blocks_of_two_threads_that_overlap() -> None:
    before, seen = torch.get_num_threads(), list[int]()
    inside, leave = threading.Event(), threading.Event()

    def work() -> None:
        with one_thread():
            seen.append(torch.get_num_threads())
            inside.set()
            leave.wait(SECONDS)
        seen.append(torch.get_num_threads())

    thread = threading.Thread(target=work)
    torch.set_num_threads(3)
    try:
        with one_thread():
            thread.start()
            assert inside.wait(SECONDS)
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 3
        leave.set()
        thread.join(SECONDS)
        assert seen == [1, 3]
        fresh = list[int]()
        thread = threading.Thread(target=lambda: fresh.append(torch.get_num_threads()))
        thread.start()
        thread.join(SECONDS)
        assert fresh == [3]
    finally:
        torch.set_num_threads(before)
