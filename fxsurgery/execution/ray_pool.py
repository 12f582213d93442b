"""Run jobs as tasks of Ray, on this machine or on a cluster.

This module is imported where Ray is asked for, and nowhere else.
"""

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch

from fxsurgery.argument_names import assigned
from fxsurgery.errors import DeviceError, WorkerError, reason_of
from fxsurgery.execution.protocol import message_of
from fxsurgery.execution.worker import Report, one_thread, work_on
from fxsurgery.execution.worker_pool import Assignment, WorkerExit
from fxsurgery.extras import requires
from fxsurgery.training import Task, resolve

with requires("ray", assigned("executor", "ray")):
    import ray
    from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayError, WorkerCrashedError

    from fxsurgery.execution.pickling import packed, unpacked

_DEATHS = (WorkerCrashedError, OutOfMemoryError, NodeDiedError, ObjectLostError)


@contextmanager
def running(workers: int | None, cores: int) -> Iterator[int]:
    """Start Ray for the block, unless it runs already; yields the number of tasks to run at once."""
    if ray.is_initialized():
        yield workers or max(1, int(_resources().get("CPU", 1)))
        return
    count = workers or cores
    with _handlers_kept(), _reports_off():
        ray.init(
            address="local", num_cpus=count, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
    try:
        yield count
    finally:
        ray.shutdown()


def _resources() -> dict[str, float]:
    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Restore the SIGTERM handler of the process, which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


@contextmanager
def _reports_off() -> Iterator[None]:
    """Turn off usage reports of a Ray that is started here, unless the user has turned them on."""
    name = "RAY_USAGE_STATS_ENABLED"
    before = os.environ.get(name)
    os.environ.setdefault(name, "0")
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name)


@dataclass(eq=False)
class Tasks:
    """A `WorkerPool` of Ray workers, each with its own copy of the data."""

    task: Task
    device: str | None
    workers: int
    _at_work: dict[Any, Assignment] = field(default_factory=dict)
    """The assignment of each running task, by its Ray reference."""
    _data: Any = None
    """The training task, in the object store of Ray."""

    def start(self, assignment: Assignment) -> None:
        """Start a job on a worker."""
        if self._data is None:
            self._data = ray.put(packed(self.task, "the task (data, loss and metric)"))
        kind = self._kind()
        share = self._gpu_share() if kind == "cuda" else 0
        remote = ray.remote(_work).options(max_retries=0, num_cpus=1, num_gpus=share, name=assignment.job.name)
        self._at_work[
            remote.remote(packed(assignment.job, f"job {assignment.job.name!r}"), self._data, kind, _path())
        ] = assignment

    def ended(self, seconds: float | None) -> list[tuple[int, bytes | WorkerExit]]:
        """Return the jobs that ended, with or without a message.

        Raises:
            WorkerError: Ray cannot run one.
        """
        ready, _ = ray.wait(list(self._at_work), num_returns=1, timeout=seconds)
        return [self._ended(one) for one in ready]

    def stop(self) -> None:
        """Cancel every running task."""
        for one in self._at_work:
            with suppress(RayError):
                ray.cancel(one, force=True)
        self._at_work.clear()

    def _ended(self, ref: Any) -> tuple[int, bytes | WorkerExit]:  # noqa: ANN401
        assignment = self._at_work.pop(ref)
        try:
            message: bytes = ray.get(ref)
        except _DEATHS as error:
            return assignment.number, WorkerExit(f"{type(error).__name__} of Ray")
        except RayError as error:
            raise WorkerError(
                f"Ray could not run job {assignment.job.name!r}: {reason_of(error)}; see the log of Ray, or take "
                f"{assigned('executor', 'processes')}"
            ) from error
        return assignment.number, message

    def _kind(self) -> str:
        """The kind of device that each worker uses; Ray assigns the particular one."""
        return str(resolve(None).type if self.device is None else torch.device(self.device).type)

    def _gpu_share(self) -> float:
        """Return the fraction of a GPU that Ray reserves for each worker.

        Raises:
            DeviceError: Ray has no GPU.
        """
        there = _resources().get("GPU", 0.0)
        if not there:
            raise DeviceError(f"Ray finds no GPU on its machines; pass {assigned('device', 'cpu')}")
        return min(1.0, there / self.workers)


def _path() -> list[str]:
    """Return the import path of this process, on which the user's modules are found."""
    return [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 -- the empty one is the working directory


def _work(job: bytes, task: bytes, device: str, path: list[str]) -> bytes:
    """Run a job in a worker."""
    sys.path.extend(entry for entry in path if entry not in sys.path)

    def work() -> Report:
        with one_thread():
            return work_on(unpacked(job), unpacked(task), device=device)

    return message_of(work)
