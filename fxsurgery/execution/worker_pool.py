"""Schedule jobs on worker processes, and run a job again if its process died."""

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fxsurgery.argument_names import assigned
from fxsurgery.errors import WorkerError
from fxsurgery.execution.job import Job
from fxsurgery.execution.protocol import report_of
from fxsurgery.execution.worker import Report
from fxsurgery.training.snapshot import Checkpointer

ATTEMPTS = 3
"""Number of times that a job is started before the death of its process is an error."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """A job with its index."""

    number: int
    job: Job
    keeper: Checkpointer | None = None
    """Writes its snapshots, if a worker can reach them."""


@dataclass(frozen=True)
class WorkerExit:
    """A process ended without a message."""

    why: str


class WorkerPool(Protocol):
    """Worker processes."""

    def start(self, assignment: Assignment) -> None:
        """Start a job on a process."""

    def ended(self, seconds: float | None) -> list[tuple[int, bytes | WorkerExit]]:
        """Return the jobs that ended, by index, with or without a message; wait for the first one until a timeout."""

    def stop(self) -> None:
        """Kill every running process."""


@dataclass(eq=False)
class Scheduler:
    """Distributes jobs to the workers of a pool."""

    pool: WorkerPool
    workers: int
    done: Callable[[int, Report, int], None]
    """Called with the index of a job, its report, and the number of processes that died on it."""
    died: list[int]
    """Gets a 1 appended for every process that died."""
    lost: Counter[int] = field(default_factory=Counter)
    """Number of processes that died, by job."""

    def run(self, assignments: Sequence[Assignment], deadline: float | None) -> list[int]:
        """Run the jobs.

        Returns:
            The numbers of those that had not ended at the deadline.

        Raises:
            WorkerError: a process raised an unexpected error, or several died on the same job.
            SurgeryError: a process raised it.
        """
        waiting, at_work = (
            deque(sorted(assignments, key=lambda assignment: -assignment.job.work)),
            dict[int, Assignment](),
        )
        try:
            while waiting or at_work:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return sorted({*at_work, *(assignment.number for assignment in waiting)})
                while waiting and len(at_work) < self.workers:
                    assignment = waiting.popleft()
                    at_work[assignment.number] = assignment
                    self.pool.start(assignment)
                for number, ended in self.pool.ended(left):
                    assignment = at_work.pop(number)
                    if isinstance(ended, WorkerExit):
                        self._lose(assignment, ended)
                        waiting.appendleft(assignment)
                    else:
                        self.done(number, report_of(ended, assignment.job), self.lost[number])
        finally:
            self.pool.stop()
        return []

    def _lose(self, assignment: Assignment, exit_: WorkerExit) -> None:
        self.lost[assignment.number] += 1
        self.died.append(1)
        if self.lost[assignment.number] >= ATTEMPTS:
            raise WorkerError(
                f"job {assignment.job.name!r}: its process died {ATTEMPTS} times, last by {exit_.why}. If it may be "
                f"out of memory, take fewer workers; {assigned('executor', 'in-process')} shows the cause"
            )
