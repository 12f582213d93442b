"""A run that is killed at random points comes to the end of an uninterrupted one, bit for bit."""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import fxsurgery
import resuming
from fxsurgery import Budget, Prune
from fxsurgery.errors import RunError, SurgeryError
from fxsurgery.runs import run_directory
from nonempty import nonempty


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
        if len(kills) >= 20 and all(any(stage in kill for kill in kills) for stage in nonempty(stages)):
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


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """`resuming.run("short", folder)` takes seconds, and a snapshot after every step."""
    settings = {**resuming.COMMON, "fewest_steps": 2, "most_steps": 6}
    job = {**resuming.jobs()["prune"], "config": Prune(**settings, importance="taylor", taylor_batches=2)}
    monkeypatch.setattr(resuming, "jobs", lambda: {"short": job})
    monkeypatch.setattr(run_directory, "SNAPSHOT_SECONDS", 0.0)


def killed_with_a_snapshot(folder: Path) -> None:
    """A run that is killed right after its fourth snapshot."""
    with pytest.MonkeyPatch.context() as patch:
        keep, kept = run_directory.Snapshots.keep, []

        def counted(self: run_directory.Snapshots, snapshot: Mapping[str, Any]) -> None:
            keep(self, snapshot)
            kept.append(snapshot)
            if len(kept) == 4:
                raise Killed

        patch.setattr(run_directory.Snapshots, "keep", counted)
        with pytest.raises(Killed):
            resuming.run("short", folder)
    assert [*folder.rglob("*.partial")]


@pytest.mark.usefixtures("short")
def test_a_flipped_bit_of_any_file_is_an_error_or_the_same_end(tmp_path: Path):
    whole = resuming.run("short", tmp_path / "whole")
    killed_with_a_snapshot(tmp_path / "killed")
    rng, refused = random.Random(0), set[str]()
    names = [p.relative_to(tmp_path / "killed") for p in sorted((tmp_path / "killed").rglob("*")) if p.is_file()]
    for name in nonempty(names):
        for _ in nonempty(range(3 if name.suffix in {".partial", ".weights", ".jsonl"} else 1)):
            folder = tmp_path / "again"
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "killed", folder)
            changed = bytearray((folder / name).read_bytes())
            if not changed:
                continue
            changed[rng.randrange(len(changed) - 1)] ^= 1 << rng.randrange(8)
            (folder / name).write_bytes(changed)
            try:
                assert resuming.run("short", folder) == whole, name
            except SurgeryError as error:
                assert name.name in str(error) or "holds a run with other settings" in str(error)  # noqa: PT017
                refused.add(name.suffix)
    assert refused >= {".partial", ".weights", ".jsonl"}


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize("lost", ["result", "report.html", "result/result.json"])
def test_what_a_finished_run_lost_is_written_again(tmp_path: Path, lost: str):
    folder = tmp_path / "run"
    end = resuming.run("short", folder)
    names = {p.relative_to(folder) for p in folder.rglob("*")}
    shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
    assert resuming.run("short", folder) == end
    assert {p.relative_to(folder) for p in folder.rglob("*")} == names
    assert resuming.digest(fxsurgery.load(folder)) == end


@pytest.mark.usefixtures("short")
def test_a_run_directory_in_use_is_refused_to_another_thread(tmp_path: Path):
    told, at_work, go_on = list[str](), threading.Event(), threading.Event()

    def waiting(output: Tensor, target: Tensor) -> Tensor:
        at_work.set()
        if not go_on.is_set():
            time.sleep(0.2)  # between its steps the other run takes its turns
        return nn.functional.cross_entropy(output, target)

    def run() -> None:
        job = {**resuming.jobs()["short"], "loss": waiting, "budget": Budget(macs=0.5), "verbose": False}
        try:
            fxsurgery.optimize(resuming.net(), **job, run_dir=tmp_path / "run", resume=True, device="cpu")
            told.append("ended")
        except RunError as error:
            told.append(str(error))

    first = threading.Thread(target=run)
    first.start()
    assert at_work.wait(60)
    run()
    go_on.set()
    first.join()
    assert "another run of this process is working there" in told[0]
    assert told[1:] == ["ended"]
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    assert len(set(lines)) == len(lines) > 2


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
    monkeypatch.setattr(run_directory, "SNAPSHOT_SECONDS", 0.0)
    disk = Disk(monkeypatch)
    disk.after(float("inf"))
    whole, operations = resuming.run("short", tmp_path / "whole"), disk.done
    assert operations > 100
    for number in nonempty(range(0, operations, 4)):
        folder = tmp_path / str(number)
        disk.after(number)
        with pytest.raises(Killed):
            resuming.run("short", folder)
        disk.after(float("inf"))
        assert resuming.run("short", folder) == whole, f"killed after {number} operations"
        assert {p.name for p in folder.iterdir()} == {p.name for p in nonempty((tmp_path / "whole").iterdir())}
        assert not [*folder.rglob("*.partial"), *(folder / "stages").glob(".*")]
