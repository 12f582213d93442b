"""Jobs as tasks of a Ray that runs on this machine: to the same end, and leaving nothing behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from execution.jobs import jobs, program, task, told
from fxsurgery.errors import DeviceError, TrainingError, WorkerError
from fxsurgery.execution import TIME_UP, Job, JobRunner
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.training import Recipe, sgd
from noisy import Noisy

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

FACTOR = 3.0


@pytest.fixture(scope="module")
def workshop():
    with JobRunner("ray", workers=2, device="cpu") as found:
        yield found
    assert not ray.is_initialized()


def test_tasks_come_to_the_same_as_in_process_bit_for_bit(workshop, tmp_path: Path):
    def own():
        loader = DataLoader(Noisy(48), 16, shuffle=True, num_workers=2, generator=torch.Generator())
        return task(train_data=loader, loss=lambda o, t: FACTOR * nn.functional.cross_entropy(o, t))

    here = told(JobRunner().run(jobs(), own(), RunDir()))
    given = own()
    assert told(workshop.run(jobs(), given, RunDir())) == here
    with RunDir.open(tmp_path / "run", {}, resume=False) as run:
        assert told(workshop.run(jobs(), given, run)) == here
    with RunDir.open(tmp_path / "run", {}, resume=True) as run:
        assert told(JobRunner("processes").run(jobs(), given, run)) == here
    assert workshop.lost == 0
    assert torch.get_num_threads() == 1


def dying(folder: Path, times: int):
    def loss(output, target):
        deaths = len(list(folder.glob("death-*")))
        if deaths < times:
            (folder / f"death-{deaths}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(output, target)

    return loss


def test_a_job_whose_worker_died_is_run_again(workshop, tmp_path: Path):
    before = workshop.lost
    ended = workshop.run(jobs(1), task(loss=dying(tmp_path, 2)), RunDir())
    assert told(ended) == told(JobRunner().run(jobs(1), task(loss=nn.functional.cross_entropy), RunDir()))
    assert workshop.lost == before + 2


def test_a_job_whose_worker_dies_each_time_is_an_error_that_names_it(workshop, tmp_path: Path):
    with pytest.raises(WorkerError, match="job 'match 0': its process died 3 times, last by WorkerCrashedError"):
        workshop.run(jobs(1), task(loss=dying(tmp_path, 10)), RunDir())


def test_errors_come_through_and_a_job_that_diverges_ends_itself(workshop):
    def unheard_of(output, target):
        raise ZeroDivisionError("all is lost")

    with pytest.raises(WorkerError, match=r"job 'match 0' ended with .*all is lost(.|\n)*in unheard_of"):
        workshop.run(jobs(1), task(loss=unheard_of), RunDir())
    with pytest.raises(TrainingError, match=r"^the loss must give a scalar"):
        workshop.run(jobs(1), task(loss=lambda o, t: o), RunDir())
    wild = Job("wild", program(8), Recipe(steps=6, optimizer=sgd(float("inf"))), seed=0)
    fine, failed = workshop.run([*jobs(1), wild], task(), RunDir())
    assert fine.failure is None
    assert "lower the learning rate" in failed.failure


def test_what_is_late_is_stopped(workshop):
    slow = Job("slow", program(8), Recipe(steps=10**7, optimizer=sgd(0.01), validations=1), seed=0)
    ended = workshop.run([slow, *jobs(1)], task(), RunDir(), deadline=time.monotonic() + 1)
    assert (ended[0].failure, ended[0].stopped) == (TIME_UP, True)
    assert workshop.run(jobs(1), task(), RunDir())[0].failure is None


def test_a_gpu_that_ray_does_not_have_is_an_error(workshop):
    if ray.cluster_resources().get("GPU"):
        pytest.skip("Ray has a GPU here")
    with pytest.raises(DeviceError, match="Ray finds no GPU"):
        JobRunner("ray", device="cuda").run(jobs(1), task(), RunDir())


def test_a_ray_that_runs_already_is_used_and_left_running(workshop):
    assert workshop.run(jobs(1, steps=1), task(), RunDir())[0].failure is None
    [end] = JobRunner("ray", device="cpu").run(jobs(1, steps=1), task(), RunDir())
    assert end.failure is None
    assert ray.is_initialized()


ALONE = """
import os, signal, warnings
import ray
from fxsurgery.execution import JobRunner
from fxsurgery.runs.run_directory import RunDir
from execution.jobs import jobs, task

warnings.simplefilter("error")
given = task(loss=lambda o, t: o.square().mean())
[end] = JobRunner("ray", workers=2, device="cpu").run(jobs(1, steps=1), given, RunDir())
assert end.failure is None
assert not ray.is_initialized()
assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
assert "RAY_USAGE_STATS_ENABLED" not in os.environ
"""


def marked(mark: str) -> list[str]:
    """What is running of the processes that have this in their environment."""
    found = list[str]()
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (path / "environ").read_bytes():
                found.append((path / "cmdline").read_bytes().decode())
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are looked up in /proc")
def test_a_ray_of_our_own_is_quiet_and_leaves_nothing_behind(tmp_path: Path):
    tests = Path(__file__).parents[1]
    around = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}", "MARK": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, check=False, env=around)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    end = time.monotonic() + 30
    while left := marked(f"MARK={tmp_path}"):
        assert time.monotonic() < end, left
        time.sleep(0.1)


def test_without_ray_it_is_said_how_to_get_it():
    script = "import sys; sys.modules['ray'] = None\nimport fxsurgery.execution.ray_pool"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "MissingExtraError: executor='ray' requires the package `ray`, which is not installed" in done.stderr
    assert "pip install 'fxsurgery[ray]'" in done.stderr
