"""Run jobs in forks of this process, which need nothing sent to them: they share the user's data and functions.

A fork has one thread, and copies of whatever locks the other threads of its parent held. So a child touches nothing
that these may hold: it runs operations on one thread, and writes to streams of its own. It leaves by `os._exit`, so
nothing that the parent set up for its own end runs twice. It leads a group of processes, its data loaders' workers
among them, that ends as one; and it dies with its parent, however that dies.
"""

import ctypes
import gc
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from typing import NoReturn

import torch

from fxsurgery.argument_names import assigned
from fxsurgery.errors import DeviceError, reason_of
from fxsurgery.execution.protocol import message_of
from fxsurgery.execution.worker import Report, work_on
from fxsurgery.execution.worker_pool import Assignment, WorkerExit
from fxsurgery.surroundings import without_warnings
from fxsurgery.training import Task

_LOOK_SECONDS = 0.2
"""Interval between checks whether a child is alive: its pipe may be held open by a child of its own."""
_SET_PARENT_DEATH_SIGNAL = 1
"""`PR_SET_PDEATHSIG` of Linux's `prctl`."""


_INTERRUPTS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True, eq=False)
class _Child:
    """A fork that runs a job."""

    number: int
    process: int
    pipe: connection.Connection
    """The pipe through which its message arrives."""


@dataclass(eq=False)
class Forks:
    """A `WorkerPool` of forks."""

    task: Task
    device: str | None = None
    children: list[_Child] = field(default_factory=list)
    lifeline: tuple[int, int] | None = field(default_factory=lambda: None if _prctl() else os.pipe())
    """A pipe whose closing signals the end of the parent to its children, on systems without another signal."""
    parents: tuple[object, ...] = ()
    """In a child, the streams of its parent: if they were collected, they would write the contents of their buffers."""

    def start(self, assignment: Assignment) -> None:
        """Start a job in a fork."""
        inner, outer = connection.Pipe(duplex=False)
        parent = os.getpid()
        _flush()
        with _uninterrupted():
            process = _fork()
            if not process:
                self._be_child(assignment, parent, inner, outer)
            self.children.append(_Child(assignment.number, process, inner))
            with suppress(OSError):  # the child does the same, and may have ended
                os.setpgid(process, process)
        outer.close()

    def ended(self, seconds: float | None) -> list[tuple[int, bytes | WorkerExit]]:
        """Return the jobs that ended, with or without a message."""
        end = None if seconds is None else time.monotonic() + seconds
        while True:
            left = _LOOK_SECONDS if end is None else min(_LOOK_SECONDS, max(0.0, end - time.monotonic()))
            ready = connection.wait([child.pipe for child in self.children], timeout=left)
            found = list[tuple[int, bytes | WorkerExit]]()
            for child in list(self.children):
                status = None
                if child.pipe in ready or (status := _status(child.process, os.WNOHANG)) is not None:
                    self.children.remove(child)
                    found.append((child.number, _message(child, status)))
            if found or (end is not None and time.monotonic() >= end):
                return found

    def stop(self) -> None:
        """Kill every child at once."""
        for child in self.children:
            _kill(child.process)
        for child in self.children:
            _status(child.process, 0)
            child.pipe.close()
        self.children.clear()
        for descriptor in self.lifeline or ():
            os.close(descriptor)
        self.lifeline = None

    def _be_child(
        self, assignment: Assignment, parent: int, inner: connection.Connection, outer: connection.Connection
    ) -> NoReturn:
        status = 1
        try:
            self._stand_alone(parent)
            for pipe in (inner, *(child.pipe for child in self.children)):
                pipe.close()
            message = message_of(lambda: self._work_on(assignment))
            _flush()
            outer.send_bytes(message)
            status = 0
        finally:
            os._exit(status)

    def _work_on(self, assignment: Assignment) -> Report:
        _require_gradients()
        return work_on(assignment.job, self.task, device=self.device, keeper=assignment.keeper)

    def _stand_alone(self, parent: int) -> None:
        with suppress(OSError):
            os.setpgid(0, 0)
        self._die_with(parent)
        torch.set_num_threads(1)
        # Garbage of the parent must be collected there: its loaders would stop their workers here.
        gc.freeze()
        signal.set_wakeup_fd(-1)
        for number in _INTERRUPTS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _INTERRUPTS)
        self.parents = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _stream(1), _stream(2)

    def _die_with(self, parent: int) -> None:
        prctl = _prctl()
        if prctl is not None and self.lifeline is None:
            prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
        elif self.lifeline is not None:
            theirs, parents = self.lifeline
            os.close(parents)
            threading.Thread(target=_wait_for_end, args=(theirs,), daemon=True).start()
        if os.getppid() != parent:
            os._exit(1)


def _require_gradients() -> None:
    """Make sure that PyTorch can compute gradients here: with a GPU, it uses threads, which a fork does not inherit.

    Raises:
        DeviceError: it cannot.
    """
    try:
        torch.zeros(1, requires_grad=True).sum().backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise DeviceError(
            f"a fork of this process cannot train ({reason_of(error)}); take {assigned('executor', 'ray')} or "
            "'in-process', or hide the GPU from this process: CUDA_VISIBLE_DEVICES="
        ) from error


def _prctl() -> Callable[[int, int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    found: Callable[[int, int], int] | None = getattr(ctypes.CDLL(None), "prctl", None)
    return found


def _wait_for_end(descriptor: int) -> None:
    os.read(descriptor, 1)
    os.killpg(0, signal.SIGKILL)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Defer interrupts within the block, so that no child continues as its parent or is left unrecorded."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _INTERRUPTS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _flush() -> None:
    """Flush the standard streams, so that their contents are not written twice."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, or not there at all
            stream.flush()


def _fork() -> int:
    """Fork; newer Python versions warn of it with several threads, which this module is made for.

    Raises:
        DeviceError: the system cannot start another process.
    """
    with without_warnings(DeprecationWarning):
        try:
            return os.fork()
        except OSError as error:
            raise DeviceError(f"no process can be started ({error.strerror}); take fewer workers") from error


def _stream(descriptor: int) -> io.TextIOWrapper:
    """Return a stream with its own lock and an empty buffer."""
    try:
        return open(descriptor, "w", buffering=1, errors="backslashreplace", closefd=False)
    except OSError:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123


def _message(child: _Child, status: int | None) -> bytes | WorkerExit:
    """Return the message of a child that has ended."""
    try:
        message = child.pipe.recv_bytes() if status is None or child.pipe.poll() else None
    except (EOFError, OSError):
        message = None
    child.pipe.close()
    _kill(child.process)
    status = _status(child.process, 0) if status is None else status
    return WorkerExit(_cause(status)) if message is None else message


def _kill(process: int) -> None:
    """Kill a child with all processes of its group."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)


def _status(process: int, flags: int) -> int | None:
    """Return the exit code of a child, or the negative of its signal; `None` if it runs, or was reaped elsewhere."""
    try:
        found, status = os.waitpid(process, flags)
    except ChildProcessError:
        return sys.maxsize
    return os.waitstatus_to_exitcode(status) if found else None


def _cause(status: int | None) -> str:
    if status is None or status == sys.maxsize:
        return "an unknown cause"
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
