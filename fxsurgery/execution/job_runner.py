"""How jobs are run: here one after the other, in forks of this process, or as tasks of Ray. All come to the same."""

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
"""How many networks train at once."""
TIME_UP = "the time was up"

OnEnd: TypeAlias = Callable[[int, JobResult], None]


class _TimeUpError(Exception):
    """Leads out of a training that runs here."""


@dataclass(frozen=True, eq=False)
class JobRunner:
    """How jobs are run. Within a `with` block of it, Ray runs on from batch to batch.

    Raises:
        SurgeryError: there is no such executor, or no worker.
    """

    executor: Executor = "in-process"
    workers: Workers | None = None
    """Processes, or tasks of Ray, at once; as many as there are cores to use, unless said."""
    device: str | None = None
    """Where to train: the GPU where there is one, unless said."""
    _lost: list[int] = field(default_factory=list, init=False, repr=False)
    _entered: list[Self] = field(default_factory=list, init=False, repr=False)
    _open: ExitStack = field(default_factory=ExitStack, init=False, repr=False)
    """Ends the Ray that was begun here."""
    _kept: list[Any] = field(default_factory=list, init=False, repr=False)
    """The crew of Ray's workers: the data are sent to it once."""

    def __post_init__(self) -> None:
        check_fields(self, SurgeryError, name="")

    def __enter__(self) -> Self:
        self._entered.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        """End what was begun here."""
        self._entered.pop()
        if not self._entered:
            self._close()

    @property
    def lost(self) -> int:
        """How many processes died so far, and had their jobs run again; those before a kill among them."""
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
        """Do jobs that were not done before a kill, and recall the others.

        Args:
            jobs: of different names.
            task: what all of them learn.
            run: keeps what they come to.
            deadline: when what has not ended is stopped, by `time.monotonic`.
            on_end: told of each as it ends, by its number among `jobs`. It must leave `run` alone.

        Returns:
            What they came to, in their order. One that diverged has a `failure`.

        Raises:
            DeviceError: these jobs cannot be run in this way.
            WorkerError: the process of a job raised what nobody foresaw, or died again and again.
            SurgeryError: what a training raised.
        """
        names = [job.name for job in jobs]
        if twice := {name for name in names if names.count(name) > 1}:
            raise SurgeryError(f"several jobs are named {', '.join(sorted(twice))}; give each of a batch its own name")
        batch = _Batch(jobs, run.places(names), on_end, self._lost)
        duties = batch.begin()
        if not duties:
            return batch.ended
        with one_thread():
            for number in self._do(duties, task, batch, deadline):
                batch.end(number, Report((), None, TIME_UP), stopped=True)
        return batch.ended

    def _do(self, duties: list[Assignment], task: Task, batch: "_Batch", deadline: float | None) -> list[int]:
        """Do jobs; the numbers of those that the deadline stopped."""
        if self.executor == "in-process":
            return self._do_here(duties, task, batch, deadline)
        self.check()
        try:
            crew, workers = self._ray(task) if self.executor == "ray" else self._forks(task)
            return Scheduler(crew, workers, batch.end, self._lost).run(duties, deadline)
        finally:
            if not self._entered:
                self._close()

    def check(self) -> None:
        """Refuse what cannot be done here.

        Raises:
            DeviceError: forks are asked for, and the system has none, or the device is none for them; or the run is
                distributed.
            MissingExtraError: Ray is asked for, and not installed.
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

    def _do_here(self, duties: list[Assignment], task: Task, batch: "_Batch", deadline: float | None) -> list[int]:
        def look(_: StepInfo | None = None) -> None:
            if deadline is not None and from_rank_zero(lambda: time.monotonic() >= deadline):
                raise _TimeUpError

        hooks = None if deadline is None else Hooks(before_step=look)
        for position, duty in enumerate(duties):
            try:
                look()
                report = work_on(duty.job, task, device=self.device, keeper=duty.keeper, hooks=hooks)
            except _TimeUpError:
                return [late.number for late in duties[position:]]
            batch.end(duty.number, report)
        return []


@dataclass(eq=False)
class _Batch:
    """Jobs with their places, and what they came to."""

    jobs: Sequence[Job]
    places: list[StageStore]
    on_end: OnEnd | None
    lost: list[int]
    _ended: dict[int, JobResult] = field(default_factory=dict)

    def begin(self) -> list[Assignment]:
        """Tell of the jobs that ended before a kill; those that are left."""
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
        """Keep what a job came to."""
        place = self.places[number]
        place.finish(report.records, report.tensors, failure=report.failure, stopped=stopped, lost=lost)
        self._tell(number)

    @property
    def ended(self) -> list[JobResult]:
        """What the jobs came to, in their order."""
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
    """How many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
