"""A run that is killed at random points comes to the end of an uninterrupted one, bit for bit."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import resuming
from fxsurgery import Prune
from fxsurgery.searchers import rundir


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the children are forks")
@pytest.mark.parametrize(
    ("job", "stages"),
    [
        ("dnal", {"weights", "architecture", "fine-tune"}),
        ("prune", {"fine-tune"}),
        ("data-free", {"synthesis", "architecture", "fine-tune"}),
        ("evolution", {"warm-up", "competition-1", "competition-2"}),
        ("evolution in processes", {"competition-1", "competition-2"}),
    ],
)
def test_killed_runs_come_to_the_same_end(tmp_path: Path, job: str, stages: set[str]):
    kills = list[str]()
    for seed in range(20):
        folder = tmp_path / str(seed)
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("resuming.py")), job, str(folder), str(seed)],
            capture_output=True, text=True, timeout=500, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["end"] == told["whole"], f"killed at {told['kills']}"
        kills += told["kills"]
        if len(kills) >= 20 and all(any(stage in kill for kill in kills) for stage in stages):
            return
    raise AssertionError(f"too few kills, or not in every stage: {kills}")


@pytest.mark.slow
def test_two_processes_that_are_killed_come_to_their_end(tmp_path: Path):
    def launched(name: str, kill_at: int) -> int:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_addr", "127.0.0.1",
            "--master_port", str(port), str(Path(__file__).with_name("resuming.py")), "together",
            str(tmp_path / name), str(kill_at),
        ]  # fmt: skip
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, capture_output=True, timeout=300, check=False, env=environment).returncode

    assert launched("whole", 0) == 0
    for kill_at in (5, 30):
        assert launched("killed", kill_at) != 0
    assert launched("killed", 0) == 0
    ends = {(tmp_path / f"{name}.{rank}").read_text() for name in ("whole", "killed") for rank in (0, 1)}
    assert len(ends) == 1


class Killed(BaseException):
    """Nothing runs after it, no cleaning up either."""


class Disk:
    """The system's file operations, of which each is followed by the end of the process once `left` are over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = self.done = 0
        for name in ("fsync", "replace", "rename", "unlink", "truncate", "mkdir", "rmdir"):
            monkeypatch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, operation):
        def counted(*args, **options):
            self.done += 1
            if self.done > self.left:
                raise Killed
            return operation(*args, **options)

        return counted

    def after(self, operations: float) -> None:
        self.left, self.done = operations, 0


@pytest.mark.slow
def test_killed_between_any_two_file_operations_it_comes_to_the_same_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    short = {**resuming.COMMON, "fewest_steps": 2, "most_steps": 3}
    job = {**resuming.jobs()["prune"], "config": Prune(**short, importance="taylor", taylor_batches=2)}
    monkeypatch.setattr(resuming, "jobs", lambda: {"short": job})
    monkeypatch.setattr(rundir, "SNAPSHOT_SECONDS", 0.0)
    disk = Disk(monkeypatch)
    disk.after(float("inf"))
    whole, operations = resuming.run("short", tmp_path / "whole"), disk.done
    assert operations > 100
    for number in range(0, operations, 4):
        folder = tmp_path / str(number)
        disk.after(number)
        with pytest.raises(Killed):
            resuming.run("short", folder)
        disk.after(float("inf"))
        assert resuming.run("short", folder) == whole, f"killed after {number} operations"
        assert {p.name for p in folder.iterdir()} == {p.name for p in (tmp_path / "whole").iterdir()}
        assert not [*folder.rglob("*.partial"), *(folder / "stages").glob(".*")]
