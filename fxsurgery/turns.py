"""Turns at global state of the process: one thread borrows it, and every other thread of this package waits.

PyTorch, numpy and Python draw from generators that all threads share, torch.fx traces by replacing methods of
`nn.Module`, and Accelerate keeps its state on its classes. Two threads at once would draw from each other's seeds and
put back each other's changes, so each takes its turn. A long piece of work gives way between its steps: what it
borrowed goes back, the threads that wait have their turns, and then it continues as if nothing had happened.

Code of the user's that runs inside a turn, a forward or a loss, must not wait for another thread that needs one.
"""

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Loan(Protocol):
    """Borrowed state of the process."""

    def swap(self) -> None:
        """Exchange the state of the process with the one that this object holds."""


class Turns:
    """A reentrant lock that is handed on in the order of the requests."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._owner: int | None = None
        self._depth = 0
        self._waiting = deque[object]()
        self._loans = list[Loan]()

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait until no other thread has the turn, and hold it while the block runs."""
        self._take(1)
        try:
            yield
        finally:
            self._release(1)

    @contextmanager
    def borrowed(self, loan: Loan) -> Iterator[None]:
        """Hold the turn while the block runs; `loan` holds the previous state of the process, and restores it."""
        with self.turn():
            self._loans.append(loan)
            try:
                yield
            finally:
                self._loans.remove(loan)
                loan.swap()

    def give_way(self) -> None:
        """Let waiting threads have their turns. Without any, this is almost free."""
        if not self._waiting or self._owner != threading.get_ident():
            return
        loans, depth = self._loans, self._depth
        for loan in reversed(loans):
            loan.swap()
        self._loans = []
        self._release(depth)
        interrupted = self._regain(depth)
        self._loans = loans
        for loan in loans:
            loan.swap()
        if interrupted is not None:
            raise interrupted

    def _take(self, depth: int) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._owner != me:
                ticket = object()
                self._waiting.append(ticket)
                try:
                    self._changed.wait_for(lambda: self._owner is None and self._waiting[0] is ticket)
                    self._owner = me
                finally:
                    self._waiting.remove(ticket)
                    self._changed.notify_all()
            self._depth += depth

    def _regain(self, depth: int) -> KeyboardInterrupt | None:
        """Take the turn again, so that borrowed state can be restored. An interrupt is raised afterwards."""
        interrupted = None
        while True:
            try:
                self._take(depth)
            except KeyboardInterrupt as error:
                interrupted = error
            else:
                return interrupted

    def _release(self, depth: int) -> None:
        with self._changed:
            self._depth -= depth
            if not self._depth:
                self._owner = None
                self._changed.notify_all()

    def forget_other_threads(self) -> None:
        """Reset the lock in a forked process, where the threads that held or awaited it do not exist."""
        self._changed = threading.Condition(threading.Lock())
        self._waiting = deque()
        if self._owner != threading.get_ident():
            self._owner, self._depth, self._loans = None, 0, []


TURNS = Turns()
"""Turns of this process."""

os.register_at_fork(after_in_child=TURNS.forget_other_threads)
