"""In which order jobs are shared out."""

from collections import deque
from dataclasses import dataclass, field, replace

import pytest

from execution.jobs import jobs
from fxsurgery.errors import WorkerError
from fxsurgery.execution.protocol import message_of
from fxsurgery.execution.worker import Report
from fxsurgery.execution.worker_pool import Assignment, Scheduler, WorkerExit


@dataclass(eq=False)
class Ready:
    """A crew whose jobs end in the order in which they began; the first `deaths` of each number die."""

    deaths: dict[int, int] = field(default_factory=dict)
    began: list[int] = field(default_factory=list)
    at_work: deque[int] = field(default_factory=deque)
    most: int = 0

    def start(self, duty: Assignment) -> None:
        self.began.append(duty.number)
        self.at_work.append(duty.number)
        self.most = max(self.most, len(self.at_work))

    def ended(self, seconds: float | None) -> list[tuple[int, bytes | WorkerExit]]:
        number = self.at_work.popleft()
        if self.deaths.get(number, 0):
            self.deaths[number] -= 1
            return [(number, WorkerExit("a test"))]
        return [(number, message_of(lambda: Report((), None, "no training here")))]

    def stop(self) -> None:
        self.at_work.clear()


def shared(crew: Ready, works: list[float], *, workers: int = 2) -> list[int]:
    done: list[int] = []
    given = zip(jobs(len(works)), works, strict=True)
    duties = [Assignment(number, replace(job, work=work)) for number, (job, work) in enumerate(given)]
    assert not Scheduler(crew, workers, lambda number, *_: done.append(number), []).run(duties, None)
    return done


def test_the_longest_jobs_begin_first_and_equal_ones_in_their_order():
    crew = Ready()
    assert sorted(shared(crew, [1.0, 3.0, 1.0, 2.0, 3.0])) == [0, 1, 2, 3, 4]
    assert crew.began == [1, 4, 3, 0, 2]
    assert crew.most == 2


def test_a_job_whose_process_died_is_begun_again_before_the_others():
    crew = Ready(deaths={1: 2})
    assert shared(crew, [1.0, 3.0, 2.0], workers=1) == [1, 2, 0]
    assert crew.began == [1, 1, 1, 2, 0]


def test_a_job_that_kills_its_processes_is_an_error():
    with pytest.raises(WorkerError, match=r"'match 0'.*3 times"):
        shared(Ready(deaths={0: 3}), [1.0, 1.0])
