"""Jobs shared out among processes: as many at once as there are workers, and again where a process died over one."""

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
"""How often a job is begun before the processes that die over it are an error."""


@dataclass(frozen=True, eq=False)
class Assignment:
    """A job to be done."""

    number: int
    job: Job
    keeper: Checkpointer | None = None
    """Of its snapshots, where a process can reach them."""


@dataclass(frozen=True)
class WorkerExit:
    """A process ended without a message."""

    why: str


class WorkerPool(Protocol):
    """Processes that work."""

    def start(self, duty: Assignment) -> None:
        """Have a process begin to work on a job."""

    def ended(self, seconds: float | None) -> list[tuple[int, bytes | WorkerExit]]:
        """The jobs that ended, by number: with a message, or not. Waits for one, but no longer than that."""

    def stop(self) -> None:
        """End every process that is at work, at once."""


@dataclass(eq=False)
class Scheduler:
    """Jobs that are being shared out."""

    crew: WorkerPool
    workers: int
    done: Callable[[int, Report, int], None]
    """Takes what a job came to: its number, the report, and how many processes died over it."""
    died: list[int]
    """Gets a 1 for every process that died."""
    lost: Counter[int] = field(default_factory=Counter)
    """How many processes died, by job."""

    def run(self, duties: Sequence[Assignment], deadline: float | None) -> list[int]:
        """Have them done.

        Returns:
            The numbers of those that had not ended at the deadline.

        Raises:
            WorkerError: a process raised what nobody foresaw, or several died over the same job.
            SurgeryError: what a process raised.
        """
        waiting, at_work = deque(sorted(duties, key=lambda duty: -duty.job.work)), dict[int, Assignment]()
        try:
            while waiting or at_work:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return sorted({*at_work, *(duty.number for duty in waiting)})
                while waiting and len(at_work) < self.workers:
                    duty = waiting.popleft()
                    at_work[duty.number] = duty
                    self.crew.start(duty)
                for number, told in self.crew.ended(left):
                    duty = at_work.pop(number)
                    if isinstance(told, WorkerExit):
                        self._lose(duty, told)
                        waiting.appendleft(duty)
                    else:
                        self.done(number, report_of(told, duty.job), self.lost[number])
        finally:
            self.crew.stop()
        return []

    def _lose(self, duty: Assignment, died: WorkerExit) -> None:
        self.lost[duty.number] += 1
        self.died.append(1)
        if self.lost[duty.number] >= ATTEMPTS:
            raise WorkerError(
                f"job {duty.job.name!r}: its process died {ATTEMPTS} times, at last by {died.why}. Where it may be out "
                f"of memory, take fewer workers; {assigned('executor', 'in-process')} shows what it dies of"
            )
