"""Run jobs one after another in process, in forks of this process, or as tasks of Ray, with the same results."""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self, TypeAlias

from fxsurgery.argument_names import assigned
from fxsurgery.errors import DeviceError, SurgeryError
from fxsurgery.execution.fork_pool import Forks
from fxsurgery.execution.job import Job, JobResult
from fxsurgery.execution.worker import Report, one_thread, work_on
from fxsurgery.execution.worker_pool import Assignment, Scheduler, WorkerPool
from fxsurgery.option_types import Range, check_fields
from fxsurgery.runs.records import require_curve
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.runs.stage_store import StageStore
from fxsurgery.training import Hooks, StepInfo, Task, from_rank_zero, resolve
from fxsurgery.training.device import processes

Executor: TypeAlias = Literal["in-process", "processes", "ray"]
Workers: TypeAlias = Annotated[int, Range(least=1, below=10**6)]
"""Number of networks that train at once."""
TIME_UP = "the time limit was reached"

OnEnd: TypeAlias = Callable[[int, JobResult], None]


class _TimeUpError(Exception):
    """Raised to leave a training that runs in this process."""


@dataclass(frozen=True, eq=False)
class JobRunner:
    """Runs jobs. As a context manager, it keeps Ray running between batches.

    Raises:
        SurgeryError: the executor is unknown, or the number of workers is less than 1.
    """

    executor: Executor = "in-process"
    workers: Workers | None = None
    """Number of processes, or tasks of Ray, at once; the number of usable cores by default."""
    device: str | None = None
    """Device to train on; the GPU by default, if there is one."""
    _lost: list[int] = field(default_factory=list, init=False, repr=False)
    _entered: list[Self] = field(default_factory=list, init=False, repr=False)
    _open: ExitStack = field(default_factory=ExitStack, init=False, repr=False)
    """Shuts down the Ray that was started here."""
    _kept: list[Any] = field(default_factory=list, init=False, repr=False)
    """The pool of Ray workers, to which the data are sent once."""

    def __post_init__(self) -> None:
        check_fields(self, SurgeryError, name="")

    def __enter__(self) -> Self:
        self._entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Shut down what was started here."""
        self._entered.pop()
        if not self._entered:
            self._close()

    @property
    def lost(self) -> int:
        """Number of processes that died and whose jobs were run again, including those before a resume."""
        return sum(self._lost)

    def run(
        self,
        jobs: Sequence[Job],
        task: Task,
        run: RunDir,
        *,
        deadline: float | None = None,
        on_end: OnEnd | None = None,
    ) -> list[JobResult]:
        """Run jobs; those that an interrupted run had finished are recalled instead.

        Args:
            jobs: jobs with different names.
            task: the task that all of them train on.
            run: keeps the results.
            deadline: time at which unfinished jobs are stopped, as a `time.monotonic` value.
            on_end: called with the index and the result of each job as it ends. It must not use `run`.

        Returns:
            What they came to, in their order. One that diverged has a `failure`.

        Raises:
            DeviceError: the executor cannot run these jobs.
            WorkerError: the process of a job raised an unexpected error, or died repeatedly.
            SurgeryError: a training failed.
        """
        names = [job.name for job in jobs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise SurgeryError(f"several jobs are named {', '.join(sorted(twice))}; give each of a batch its own name")
        batch = _Batch(jobs, run.places(names), on_end, self._lost)
        assignments = batch.begin()
        if not assignments:
            return batch.ended
        with one_thread():
            for number in self._do(assignments, task, batch, deadline):
                batch.end(number, Report((), None, TIME_UP), stopped=True)
        return batch.ended

    def _do(self, assignments: list[Assignment], task: Task, batch: "_Batch", deadline: float | None) -> list[int]:
        """Run jobs; return the indices of those that the deadline stopped."""
        if self.executor == "in-process":
            return self._do_here(assignments, task, batch, deadline)
        self.check()
        try:
            pool, workers = self._ray(task) if self.executor == "ray" else self._forks(task)
            return Scheduler(pool, workers, batch.end, self._lost).run(assignments, deadline)
        finally:
            if not self._entered:
                self._close()

    def check(self) -> None:
        """Refuse an executor that cannot work here.

        Raises:
            DeviceError: forks are asked for, and the system has none, or the device is none for them; or the run is
                distributed.
            MissingExtraError: the executor is Ray, which is not installed.
        """
        if self.executor == "in-process":
            return
        if processes() > 1:
            raise DeviceError(
                f"{assigned('executor', self.executor)} runs jobs in processes of its own, and this run is distributed "
                f"already: take {assigned('executor', 'in-process')}, whose processes share every job"
            )
        if self.executor == "processes":
            self._check_forks()
        else:
            from fxsurgery.execution import ray_pool  # noqa: F401, PLC0415 -- Ray is an extra: missed before training

    def _check_forks(self) -> None:
        if not hasattr(os, "fork"):
            raise DeviceError(
                f"{assigned('executor', 'processes')} forks, which this system cannot: take 'ray' or 'in-process'"
            )
        device = resolve(self.device)
        if device.type != "cpu":
            raise DeviceError(
                f"{assigned('executor', 'processes')} forks, and a fork cannot use {device}: take 'ray' or "
                f"'in-process', or {assigned('device', 'cpu')}"
            )

    def _forks(self, task: Task) -> tuple[WorkerPool, int]:
        return Forks(task, str(resolve(self.device))), self.workers or usable_cores()

    def _ray(self, task: Task) -> tuple[WorkerPool, int]:
        from fxsurgery.execution import ray_pool  # noqa: PLC0415 -- Ray is an extra

        if not self._kept:
            workers = self._open.enter_context(ray_pool.running(self.workers, usable_cores()))
            self._kept.append(ray_pool.Tasks(task, self.device, workers))
        if self._kept[0].task is not task:
            self._kept[0] = ray_pool.Tasks(task, self.device, self._kept[0].workers)
        return self._kept[0], self._kept[0].workers

    def _close(self) -> None:
        self._kept.clear()
        self._open.close()

    def _do_here(self, assignments: list[Assignment], task: Task, batch: "_Batch", deadline: float | None) -> list[int]:
        def look(_: StepInfo | None = None) -> None:
            if deadline is not None and from_rank_zero(lambda: time.monotonic() >= deadline):
                raise _TimeUpError

        hooks = None if deadline is None else Hooks(before_step=look)
        for position, assignment in enumerate(assignments):
            try:
                look()
                report = work_on(assignment.job, task, device=self.device, keeper=assignment.keeper, hooks=hooks)
            except _TimeUpError:
                return [late.number for late in assignments[position:]]
            batch.end(assignment.number, report)
        return []


@dataclass(eq=False)
class _Batch:
    """Jobs with their indices, and their results."""

    jobs: Sequence[Job]
    places: list[StageStore]
    on_end: OnEnd | None
    lost: list[int]
    _ended: dict[int, JobResult] = field(default_factory=dict)

    def begin(self) -> list[Assignment]:
        """Report the jobs that an interrupted run had finished; return the others."""
        left = list[Assignment]()
        for number, (job, place) in enumerate(zip(self.jobs, self.places, strict=True)):
            if place.record is None:
                left.append(Assignment(number, job, place.keeper()))
            else:
                require_curve(place.record["records"], job.name)
                self.lost.append(place.record.get("lost", 0))
                self._tell(number, is_recalled=True)
        return left

    def end(self, number: int, report: Report, lost: int = 0, *, stopped: bool = False) -> None:
        """Record the result of a job."""
        place = self.places[number]
        place.finish(report.records, report.tensors, failure=report.failure, stopped=stopped, lost=lost)
        self._tell(number)

    @property
    def ended(self) -> list[JobResult]:
        """Return the results of the jobs, in their order."""
        return [self._ended[number] for number in range(len(self.jobs))]

    def _tell(self, number: int, *, is_recalled: bool = False) -> None:
        place = self.places[number]
        record = place.record or {}
        self._ended[number] = JobResult(
            tuple(record["records"]), record["failure"], record["stopped"], place.weights, is_recalled, place.forget
        )
        if self.on_end is not None:
            self.on_end(number, self._ended[number])


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
