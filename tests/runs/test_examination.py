"""A plan refuses each run directory that the run itself would refuse, in the same words, and changes nothing."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fxsurgery.errors import RunError
from fxsurgery.runs.examination import require_startable
from fxsurgery.runs.lock import Lock
from fxsurgery.runs.run_directory import RunDir

SETTINGS = {"seed": 0, "environment": {"device": "cpu"}}


def started(path: Path) -> None:
    """A run that has trained one stage and was killed."""
    with RunDir.open(path, SETTINGS, resume=False) as run:
        run.recall("date", lambda: "2026-01-01")
    (path / "stages" / "001-weights").mkdir(parents=True)


def with_journal_damaged(path: Path) -> None:
    started(path)
    journal = path / "journal.jsonl"
    journal.write_bytes(journal.read_bytes().replace(b"2026", b"2027"))


def with_pipe(path: Path) -> None:
    started(path)
    (path / "config.json").unlink()
    os.mkfifo(path / "config.json")


def with_other_files(path: Path) -> None:
    path.mkdir()
    (path / "notes.txt").touch()


REFUSED: dict[str, tuple[Callable[[Path], object], dict[str, object], bool, str]] = {
    "a run that is not to be resumed": (started, SETTINGS, False, "holds a run already"),
    "other settings": (started, {**SETTINGS, "seed": 1}, True, "other settings"),
    "other files": (with_other_files, SETTINGS, False, "no run"),
    "a file": (Path.touch, SETTINGS, False, "run is not a directory"),
    "a damaged journal": (with_journal_damaged, SETTINGS, True, "damaged"),
    "a pipe in place of a file": (with_pipe, SETTINGS, True, "not a regular file"),
}


def contents(folder: Path) -> dict[str, tuple[int, int]]:
    found = {str(p.relative_to(folder)): p.lstat() for p in folder.rglob("*") if p.name != ".lock"}
    return {name: (stat.st_mtime_ns, stat.st_size) for name, stat in found.items()}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_run_refuses_a_plan_refuses_and_nothing_changes(tmp_path: Path, name: str):
    make, settings, resume, words = REFUSED[name]
    path = tmp_path / "run"
    make(path)
    before = contents(tmp_path)
    with pytest.raises(RunError, match=words):
        require_startable(path, settings, resume=resume)
    assert contents(tmp_path) == before
    with pytest.raises(RunError, match=words):
        RunDir.open(path, settings, resume=resume)


def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="file is not a directory"):
        require_startable(tmp_path / "file" / "run", SETTINGS, resume=False)
    monkeypatch.setattr("os.access", lambda *_: False)
    with pytest.raises(RunError, match="cannot be written to: no permission"):
        require_startable(tmp_path / "deep" / "run", SETTINGS, resume=False)
    assert not (tmp_path / "deep").exists()


def test_a_directory_in_use_is_refused(tmp_path: Path):
    started(tmp_path / "run")
    lock = Lock(tmp_path / "run")
    lock.working = True
    with pytest.raises(RunError, match="another run of this process"):
        require_startable(tmp_path / "run", SETTINGS, resume=True)
    lock.release()
    code = f"from pathlib import Path; from fxsurgery.runs.lock import Lock; l = Lock(Path({str(tmp_path / 'run')!r}))"
    command = [sys.executable, "-c", f"{code}; print(1, flush=True); input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(RunError, match="another process"):
            require_startable(tmp_path / "run", SETTINGS, resume=True)
        other.communicate(b"\n")


@pytest.mark.parametrize("resume", [True, False])
def test_a_directory_that_a_run_takes_is_taken_and_left_as_it_is(tmp_path: Path, resume: bool):
    assert require_startable(tmp_path / "new" / "run", SETTINGS, resume=resume) == []
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    assert require_startable(tmp_path / "empty", SETTINGS, resume=resume) == []
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_run_to_resume_is_left_as_it_is_half_a_line_too(tmp_path: Path):
    started(tmp_path / "run")
    with (tmp_path / "run" / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "va')
    before = contents(tmp_path)
    other = {**SETTINGS, "environment": {"device": "cuda"}}
    [note] = require_startable(tmp_path / "run", other, resume=True)
    assert "rounding" in note
    assert contents(tmp_path) == before
