"""Forks that die, that outlive nobody, and that leave their parent as it was."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from execution.jobs import jobs, program, task, told
from execution.killing import alive, endless, left, telling
from fxsurgery.errors import DeviceError, WorkerError
from fxsurgery.execution import Job, JobRunner
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.training import Recipe, sgd
from nonempty import nonempty

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the jobs run in forks"),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are looked up in /proc"),
]
PATIENCE = 60
"""Seconds after which what should have happened has not."""


TESTS = Path(__file__).parents[1]
AROUND = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}


def until(what) -> None:
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.02)


def dying(folder: Path, times: int, die):
    """A loss whose process dies, so many times in all."""

    def loss(output, target):
        deaths = len(list(folder.glob("death-*")))
        if deaths < times:
            (folder / f"death-{deaths}").touch()
            die()
        return nn.functional.cross_entropy(output, target)

    return loss


def shot() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_job_whose_process_was_killed_is_run_again(tmp_path: Path):
    asked = {"seed": 0}
    with RunDir.open(tmp_path / "run", asked, resume=False) as run:
        workshop = JobRunner("processes", workers=1)
        ended = workshop.run(jobs(), task(loss=dying(tmp_path, 2, shot)), run)
    assert workshop.lost == 2
    assert told(ended) == told(JobRunner().run(jobs(), task(loss=nn.functional.cross_entropy), RunDir()))
    with RunDir.open(tmp_path / "run", asked, resume=True) as run:
        resumed = JobRunner()
        resumed.run(jobs(), task(), run)
    assert resumed.lost == 2


@pytest.mark.parametrize(("die", "cause"), [(shot, "signal SIGKILL"), (lambda: os._exit(7), "exit code 7")])
def test_a_job_whose_process_dies_each_time_is_an_error_that_names_it(tmp_path: Path, die, cause: str):
    workshop = JobRunner("processes", workers=1)
    with pytest.raises(WorkerError, match=f"job 'match 0': its process died 3 times, last by {cause}"):
        workshop.run(jobs(), task(loss=dying(tmp_path, 10, die)), RunDir())
    assert workshop.lost == 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("error", [ZeroDivisionError("all is lost"), SystemExit("all is lost")])
def test_what_nobody_foresaw_comes_through_with_its_traceback(error: BaseException):
    def unheard_of(output, target):
        raise error

    with pytest.raises(type(error), match="all is lost"):
        JobRunner().run(jobs(2), task(loss=unheard_of), RunDir())
    with pytest.raises(WorkerError, match=r"job 'match 0' ended with .*all is lost(.|\n)*in unheard_of"):
        JobRunner("processes", workers=1).run(jobs(2), task(loss=unheard_of), RunDir())


def test_an_error_of_ours_tells_where_it_came_from():
    def wrong(output, target):
        raise ValueError("no such class")

    with pytest.raises(Exception, match="no such class") as here:
        JobRunner().run(jobs(1), task(loss=wrong), RunDir())
    with pytest.raises(type(here.value), match="no such class") as there:
        JobRunner("processes").run(jobs(1), task(loss=wrong), RunDir())
    assert str(there.value) == str(here.value)
    assert "in wrong" in there.value.__notes__[0]


def test_no_process_is_left_when_one_job_fails(tmp_path: Path):
    given = telling(tmp_path)

    def failing(output, target):
        loss = given.loss(output, target)
        if len(left(tmp_path, "trained")) > 1:
            until(lambda: len(left(tmp_path)) > 3)  # the workers of the loaders, too
            raise ZeroDivisionError
        return loss

    broken = task(train_data=given.train_data, loss=failing)
    with pytest.raises(WorkerError):
        JobRunner("processes", workers=2).run(endless(2), broken, RunDir())
    assert len(left(tmp_path)) > 3
    until(lambda: not any(map(alive, left(tmp_path))))


def begun(what: str, folder: Path, **options) -> subprocess.Popen:
    line = [sys.executable, str(Path(__file__).with_name("killing.py")), what, str(folder), "0"]
    return subprocess.Popen(line, env=AROUND, **options)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["endless", "lifeline"])
def test_no_process_outlives_a_parent_that_is_killed(tmp_path: Path, what: str):
    with begun(what, tmp_path) as parent:
        until(lambda: len(left(tmp_path, "trained")) == 2 and len(left(tmp_path)) >= 4)
        assert all(map(alive, nonempty(left(tmp_path, "trained"))))
        parent.kill()
    until(lambda: not any(map(alive, left(tmp_path))))


@pytest.mark.slow
def test_an_interrupt_ends_every_process_and_is_an_interrupt(tmp_path: Path):
    with begun("endless", tmp_path, stderr=subprocess.PIPE, text=True) as parent:
        until(lambda: len(left(tmp_path, "trained")) == 2)
        parent.send_signal(signal.SIGINT)
        _, shown = parent.communicate(timeout=PATIENCE)
    assert shown.rstrip().endswith("KeyboardInterrupt")
    assert shown.count("Traceback") == 1
    until(lambda: not any(map(alive, left(tmp_path))))


STREAMS = """
import atexit
from execution.jobs import jobs, task
from fxsurgery.execution import Job, JobRunner
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.training import Recipe, sgd
from torch.nn.functional import cross_entropy

def loss(output, target):
    print("from a child")
    return cross_entropy(output, target)

atexit.register(print, "at the end")
print("not yet written")
JobRunner("processes", workers=2, device="cpu").run(jobs(2, steps=1), task(loss=loss), RunDir())
"""


@pytest.mark.slow
def test_a_fork_writes_what_is_its_own_and_leaves_the_rest_to_its_parent():
    done = subprocess.run([sys.executable, "-c", STREAMS], capture_output=True, text=True, check=True, env=AROUND)
    lines = done.stdout.splitlines()
    assert lines.count("not yet written") == lines.count("at the end") == 1
    assert lines.count("from a child") >= 2
    assert done.stderr == ""


def test_forks_print_under_a_live_display_of_their_parent():
    def loss(output, target):
        print("from a child")  # noqa: T201
        return nn.functional.cross_entropy(output, target)

    shown = io.StringIO()
    with Progress(console=Console(file=shown, force_terminal=True), refresh_per_second=500) as bar:
        bar.add_task("busy", total=None)
        for _ in range(3):
            ended = JobRunner("processes", workers=2).run(jobs(3, steps=2), task(loss=loss), RunDir())
    assert [end.failure for end in ended] == [None] * 3


def test_a_system_without_room_for_processes_is_a_clear_error(monkeypatch: pytest.MonkeyPatch):
    def full():
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", full)
    with pytest.raises(DeviceError, match=r"Resource temporarily unavailable.*take fewer workers"):
        JobRunner("processes").run(jobs(1), task(), RunDir())


def test_a_fork_that_cannot_train_says_what_to_do(monkeypatch: pytest.MonkeyPatch):
    def stuck(*_, **__):
        raise RuntimeError("Unable to handle autograd's threading in combination with fork-based multiprocessing")

    monkeypatch.setattr(torch.Tensor, "backward", stuck)
    with pytest.raises(DeviceError, match=r"cannot train \(Unable to .*take executor='ray' or 'in-process', or hide"):
        JobRunner("processes").run(jobs(1), task(), RunDir())


def test_forks_can_be_made_from_any_thread():
    found = []
    thread = Thread(target=lambda: found.append(JobRunner("processes", workers=2).run(jobs(2), task(), RunDir())))
    thread.start()
    thread.join()
    assert told(found[0]) == told(JobRunner().run(jobs(2), task(), RunDir()))


@pytest.mark.slow
def test_large_results_come_through_side_by_side():
    given = [Job(f"wide {i}", program(60_000), Recipe(steps=1, optimizer=sgd(0.1)), seed=i) for i in range(2)]
    small = task(train_data=(torch.randn(2, 3, 8, 8), torch.arange(2)))
    ended = JobRunner("processes", workers=2).run(given, small, RunDir())
    assert [sum(t.numel() for t in end.weights().values()) > 10**6 for end in ended] == [True, True]


@pytest.mark.slow
def test_killed_at_random_points_two_batches_come_to_the_same_end(tmp_path: Path):
    kills = list[list[str]]()
    for seed in range(12):
        folder = tmp_path / str(seed)
        folder.mkdir()
        line = [sys.executable, str(Path(__file__).with_name("killing.py")), "again", str(folder), str(seed)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=500, check=False, env=AROUND)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["end"] == told["whole"], f"killed at {told['kills']}"
        assert told["left"] == [f"{n}.weights" for n in ("001-match-0", "002-match-1", "005-again-0", "006-again-1")]
        kills += told["kills"]
        within = any(kill[-1] not in {"0 records", "4 records"} for kill in kills)
        if len(kills) >= 15 and within and any(len(kill) > 2 for kill in kills):
            return
    raise AssertionError(f"too few kills, or never within a batch, or never with two jobs under way: {kills}")
