"""All ways to run jobs come to the same end, keep it, and go on with it."""

import json
import math
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from execution.jobs import jobs, program, task, told
from fxsurgery.errors import DeviceError, RunError, SurgeryError, TrainingError
from fxsurgery.execution import TIME_UP, Job, JobResult, JobRunner
from fxsurgery.runs import run_directory
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.training import Recipe, sgd
from noisy import Noisy, images
from nonempty import nonempty

FORKED = pytest.mark.skipif(not hasattr(os, "fork"), reason="the jobs run in forks")
HERE = "in-process"
BOTH = [HERE, pytest.param("processes", marks=FORKED)]


def opened(path: Path, *, resume: bool = False) -> RunDir:
    return RunDir.open(path / "run", {"seed": 0}, resume=resume)


def journal(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "run" / "journal.jsonl").read_text().splitlines()]


def files(path: Path) -> list[str]:
    return sorted(p.name for p in (path / "run" / "stages").iterdir())


@FORKED
@pytest.mark.parametrize("loader_workers", [0, 2])
def test_processes_come_to_the_same_as_in_process_bit_for_bit(tmp_path: Path, loader_workers: int):
    def own():
        if not loader_workers:
            return task()
        return task(train_data=DataLoader(Noisy(48), 16, shuffle=True, num_workers=loader_workers))

    here = JobRunner().run(jobs(), own(), RunDir())
    there = JobRunner("processes", workers=2).run(jobs(), own(), RunDir())
    kept = JobRunner("processes", workers=3).run(jobs(), own(), opened(tmp_path))
    assert told(here) == told(there) == told(kept)
    assert [end.failure for end in here] == [None] * 3
    assert {record["stage"] for record in here[1].records} == {"match 1"}


@pytest.mark.parametrize("executor", BOTH)
def test_a_job_trains_a_copy_with_its_own_seed(executor: str):
    [job] = jobs(1)
    again = Job("again", job.program, job.recipe, job.seed)
    other = Job("other", job.program, job.recipe, seed=5)
    before = {name: t.clone() for name, t in job.program.graph_module.state_dict().items()}
    first, same, differs = JobRunner(executor, workers=2).run([job, again, other], task(), RunDir())
    assert told([first])[0][3] == told([same])[0][3] != told([differs])[0][3]
    assert all(torch.equal(t, before[name]) for name, t in nonempty(job.program.graph_module.state_dict().items()))
    trained = first.trained(job.program)
    assert all(torch.equal(t, first.weights()[name]) for name, t in nonempty(trained.graph_module.named_parameters()))
    assert not torch.equal(trained.run_examples()[0], job.program.run_examples()[0])


@pytest.mark.parametrize("executor", BOTH)
def test_the_process_is_afterwards_as_it_was(executor: str):
    torch.set_num_threads(2)
    try:
        random.seed(3), np.random.seed(3), torch.random.default_generator.manual_seed(3)  # noqa: NPY002
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        seen = []
        loss = lambda o, t: seen.append(torch.get_num_threads()) or nn.functional.cross_entropy(o, t)  # noqa: E731
        JobRunner(executor, workers=2).run(jobs(2), task(loss=loss), RunDir())
        after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002
        assert torch.get_num_threads() == 2
        assert set(seen) == ({1} if executor == HERE else set())
    finally:
        torch.set_num_threads(1)
    assert before == after


@FORKED
def test_a_fork_survives_threads_that_its_parent_has_used():
    torch.set_num_threads(4)
    try:
        big = torch.randn(600, 600, requires_grad=True)
        (big @ big).relu().sum().backward()
        there = JobRunner("processes", workers=2).run(jobs(2, steps=2), task(), RunDir())
    finally:
        torch.set_num_threads(1)
    assert told(there) == told(JobRunner().run(jobs(2, steps=2), task(), RunDir()))


@pytest.mark.parametrize("executor", BOTH)
def test_a_finished_batch_is_recalled_without_doing_anything_again(tmp_path: Path, executor: str):
    seen = []
    with opened(tmp_path) as run:
        first = JobRunner(executor, workers=2).run(jobs(), task(), run, on_end=lambda i, _: seen.append(i))
    assert sorted(seen) == [0, 1, 2]
    assert sorted(record["name"] for record in journal(tmp_path)) == ["match 0", "match 1", "match 2"]
    assert files(tmp_path) == ["001-match-0.weights", "002-match-1.weights", "003-match-2.weights"]

    def never(*_):
        raise AssertionError

    with opened(tmp_path, resume=True) as run:
        again = JobRunner(HERE).run(jobs(), task(loss=never), run, on_end=lambda i, _: seen.append(i))
        assert run.done == 0
    assert seen[3:] == [0, 1, 2]
    assert told(again) == told(first)
    assert again[0].records == first[0].records


@pytest.mark.parametrize("executor", BOTH)
def test_a_batch_that_was_cut_off_goes_on_with_any_executor(tmp_path: Path, executor: str):
    whole = told(JobRunner().run(jobs(4), task(), RunDir()))
    with opened(tmp_path) as run:
        JobRunner("in-process").run(jobs(4), task(), run)
    lines = (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "journal.jsonl").write_bytes(lines[3] + lines[1])
    for left in ("001-match-0", "003-match-2"):
        (tmp_path / "run" / "stages" / f"{left}.weights").unlink()
    with opened(tmp_path, resume=True) as run:
        ended = JobRunner(executor, workers=2).run(jobs(4), task(), run)
        assert told(ended) == whole
        assert run.recall("after", lambda: 1) == 1
    assert {record["name"] for record in journal(tmp_path)[2:4]} == {"match 0", "match 2"}


def test_anything_else_among_the_records_of_a_batch_is_refused(tmp_path: Path):
    with opened(tmp_path) as run:
        JobRunner().run(jobs(2, steps=1), task(), run)
        run.recall("value", lambda: 1)
    with opened(tmp_path, resume=True) as run, pytest.raises(RunError, match=r"value 'value' where .* stage 'match 2'"):
        JobRunner().run(jobs(3, steps=1), task(), run)
    with opened(tmp_path, resume=True) as run:
        JobRunner().run(jobs(1, steps=1), task(), run)
        with pytest.raises(RunError, match=r"stage 'match 1' where .* value 'x'"):
            run.recall("x", lambda: 1)
    lines = (tmp_path / "run" / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "run" / "journal.jsonl").write_bytes(lines[0] * 2)
    with opened(tmp_path, resume=True) as run, pytest.raises(RunError, match=r"stage 'match 0' where .* 'match 1'"):
        JobRunner().run(jobs(2, steps=1), task(), run)


@pytest.mark.parametrize("executor", BOTH)
def test_weights_that_were_given_up_are_gone_and_the_rest_is_recalled(tmp_path: Path, executor: str):
    with opened(tmp_path) as run:
        first = JobRunner(executor, workers=2).run(jobs(2, steps=2), task(), run)
        first[0].forget()
        first[0].forget()
    assert files(tmp_path) == ["002-match-1.weights"]
    with opened(tmp_path, resume=True) as run:
        again = JobRunner(executor, workers=2).run(jobs(2, steps=2), task(), run)
    assert again[0].records == first[0].records
    assert told(again[1:]) == told(first[1:])
    for end in (first[0], again[0]):
        with pytest.raises(RunError, match=r"001-match-0.weights is missing: .*discarded"):
            end.trained(program(8))


def test_weights_in_memory_are_given_up_as_well():
    [end] = JobRunner().run(jobs(1, steps=1), task(), RunDir())
    end.forget()
    with pytest.raises(RunError, match="were discarded after the stage"):
        end.weights()


@pytest.mark.parametrize("executor", BOTH)
def test_a_job_that_diverges_ends_itself_alone(tmp_path: Path, executor: str):
    wild = Job("wild", program(8), Recipe(steps=6, optimizer=sgd(math.inf)), seed=0)
    batch = [*jobs(1), wild, *jobs(2)[1:]]
    for resume in (False, True):
        with opened(tmp_path, resume=resume) as run:
            good, failed, fine = JobRunner(executor, workers=2).run(batch, task(), run)
        assert (good.failure, fine.failure) == (None, None)
        assert "'wild'" in failed.failure
        assert "lower the learning rate" in failed.failure
        assert not failed.stopped
        with pytest.raises(TrainingError, match="stage 'wild' has no weights: "):
            failed.trained(program(8))
    assert files(tmp_path) == ["001-match-0.weights", "003-match-1.weights"]


def nan(output, target):
    return nn.functional.cross_entropy(output, target) * torch.nan


def nan_in_a_term(output, target):
    return {"class": nn.functional.cross_entropy(output, target), "other": nan(output, target)}


@pytest.mark.parametrize(("loss", "told_of"), [(nan, "the loss is nan"), (nan_in_a_term, "'other' is not finite")])
def test_a_loss_that_is_not_finite_is_a_failure_of_the_job(loss, told_of: str):
    [end] = JobRunner().run(jobs(1), task(loss=loss), RunDir())
    assert told_of in end.failure


@pytest.mark.parametrize("executor", BOTH)
def test_an_error_of_ours_comes_through_as_it_is(tmp_path: Path, executor: str):
    with opened(tmp_path) as run, pytest.raises(TrainingError, match=r"^the loss must give a scalar") as caught:
        JobRunner(executor, workers=2).run(jobs(), task(loss=lambda o, t: o), run)
    assert type(caught.value) is TrainingError
    assert not (tmp_path / "run" / "journal.jsonl").exists()


@pytest.mark.parametrize("executor", BOTH)
def test_what_is_late_is_stopped_and_what_is_not_begun_never_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, executor: str
):
    slow = Job("slow", program(8), Recipe(steps=10**6, optimizer=sgd(0.01), validations=1), seed=0)
    batch, seen = [slow, *jobs(2, steps=1)], []
    monkeypatch.setattr(run_directory, "SNAPSHOT_SECONDS", 0.0)
    with opened(tmp_path) as run:
        ended = JobRunner(executor, workers=1).run(
            batch, task(), run, deadline=time.monotonic() + 0.7, on_end=lambda i, _: seen.append(i)
        )
    assert [(end.failure, end.stopped, end.records) for end in ended] == [(TIME_UP, True, ())] * 3
    assert seen == [0, 1, 2]
    assert not (tmp_path / "run" / "stages").exists() or files(tmp_path) == []
    with opened(tmp_path, resume=True) as run:
        again = JobRunner(executor, workers=1).run(batch, task(), run)
    assert told(again) == told(ended)


@pytest.mark.parametrize("executor", BOTH)
def test_after_the_deadline_nothing_begins(executor: str):
    ended = JobRunner(executor, workers=2).run(jobs(2), task(), RunDir(), deadline=time.monotonic() - 1)
    assert [end.stopped for end in ended] == [True, True]


@pytest.mark.parametrize("executor", BOTH)
def test_a_deadline_that_is_far_changes_nothing(executor: str):
    ended = JobRunner(executor, workers=2).run(jobs(2), task(), RunDir(), deadline=time.monotonic() + 1e4)
    assert told(ended) == told(JobRunner().run(jobs(2), task(), RunDir()))


def test_no_jobs_are_no_work():
    for executor in ("in-process", "processes", "ray"):
        assert JobRunner(executor).run([], task(), RunDir()) == []


def test_what_has_no_meaning_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(SurgeryError, match="executor='threads': it must be 'in-process', 'processes' or 'ray'"):
        JobRunner("threads")
    with pytest.raises(SurgeryError, match="workers=0: it must be at least 1"):
        JobRunner(workers=0)
    with pytest.raises(SurgeryError, match="several jobs are named match 0"):
        JobRunner().run([*jobs(1), *jobs(2)], task(), RunDir())
    monkeypatch.setenv("WORLD_SIZE", "2")
    for executor in ("processes", "ray"):
        with pytest.raises(DeviceError, match="distributed already"):
            JobRunner(executor)._do([None], task(), None, None)


def test_forks_are_refused_where_they_cannot_work(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(DeviceError, match="a fork cannot use meta: take 'ray' or 'in-process', or device='cpu'"):
        JobRunner("processes", device="meta").run(jobs(1), task(), RunDir())
    monkeypatch.delattr(os, "fork")
    with pytest.raises(DeviceError, match="which this system cannot: take 'ray' or 'in-process'"):
        JobRunner("processes").run(jobs(1), task(), RunDir())


def test_losers_are_not_held_in_memory(tmp_path: Path):
    with opened(tmp_path) as run:
        [end] = JobRunner().run(jobs(1, steps=1), task(), run)
    read = end.weights()
    assert read is not end.weights()
    assert isinstance(end, JobResult)
    assert all(torch.equal(read[name], t) for name, t in nonempty(end.weights().items()))


def test_images_are_data_as_well():
    [end] = JobRunner().run(jobs(1, steps=1), task(train_data=images(32)), RunDir())
    assert end.failure is None


@pytest.mark.slow
def test_a_distributed_run_shares_its_jobs_in_process(tmp_path: Path):
    tests = Path(__file__).parents[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
        "--master_port", str(port), str(Path(__file__).with_name("together.py")), str(tmp_path / "run"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    found = set()
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        found |= {(tmp_path / f"run.{rank}").read_text() for rank in (0, 1)}
    assert len(found) == 1
    [told_of] = map(json.loads, found)
    assert told_of["late"] == [TIME_UP] * 2
    assert "this run is distributed already" in told_of["refused"]
