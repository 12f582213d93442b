"""The run directory: what was done is recalled, what does not belong is refused."""

import json
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest
import torch
from torch import nn

from fxsurgery.errors import RunError
from fxsurgery.runs import run_directory
from fxsurgery.runs.run_directory import RunDir
from nonempty import nonempty

ASKED = {"method": "dnal", "seed": 0, "environment": {"torch": "2"}}


def net(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def adding(amount: float, seen: list):
    """Work on a model that can be told to have been done."""

    def work(model: nn.Module):
        def run(keeper):
            seen.append(keeper)
            with torch.no_grad():
                for tensor in (*model.parameters(), *model.buffers()):
                    tensor.add_(1 if tensor.dtype == torch.long else amount)
            return [{"loss": amount}]

        return run

    return work


def search(run: RunDir, model: nn.Module, seen: list) -> tuple[list, float]:
    records = run.stage("weights", model, adding(0.5, seen)(model))
    value = run.recall("score", lambda: seen.append("score") or 0.1 + 0.2)
    records += run.stage("fine-tune", model, adding(0.25, seen)(model))
    return records, value


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [t.clone() for t in (*model.parameters(), *model.buffers())]


def test_a_finished_run_is_recalled_without_doing_anything_again(tmp_path: Path):
    first, again = net(), net()
    seen = []
    came_to = search(RunDir.open(tmp_path / "run", ASKED, resume=False), first, seen)
    assert len(seen) == 3
    resumed = RunDir.open(tmp_path / "run", ASKED, resume=True)
    assert search(resumed, again, seen) == came_to
    assert len(seen) == 3
    assert all(torch.equal(a, b) for a, b in nonempty(zip(weights(first), weights(again), strict=True)))
    assert resumed.notes == []


@pytest.mark.parametrize("lines", range(4))
def test_a_run_cut_off_after_any_record_comes_to_the_same_end(tmp_path: Path, lines: int):
    whole = net()
    came_to = search(RunDir.open(tmp_path / "run", ASKED, resume=False), whole, [])
    journal = tmp_path / "run" / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:lines]))
    again, seen = net(), []
    assert search(RunDir.open(tmp_path / "run", ASKED, resume=True), again, seen) == came_to
    assert len(seen) == 3 - lines
    assert all(torch.equal(a, b) for a, b in nonempty(zip(weights(whole), weights(again), strict=True)))


def test_without_a_path_nothing_is_kept_and_everything_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    seen = []
    assert search(RunDir(), net(), seen) == ([{"loss": 0.5}, {"loss": 0.25}], 0.1 + 0.2)
    assert seen[0] is None
    assert list(tmp_path.iterdir()) == []


def test_the_last_snapshot_is_there_until_the_stage_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(run_directory, "SNAPSHOT_SECONDS", 0.0)
    given = {"step": 3, "tensors": {"w": torch.arange(3.0)}, "rng": (1, (2, None))}

    def cut_off(keeper):
        assert keeper.last() is None
        assert keeper.wants(3, 10)
        keeper.keep({"step": 2})
        keeper.keep(given)
        raise KeyboardInterrupt

    run = RunDir.open(tmp_path / "run", ASKED, resume=False)
    with pytest.raises(KeyboardInterrupt):
        run.stage("weights", net(), cut_off)
    found = []

    def go_on(keeper):
        found.append(keeper.last())
        return []

    RunDir.open(tmp_path / "run", ASKED, resume=True).stage("weights", net(), go_on)
    assert (found[0]["step"], found[0]["rng"]) == (3, (1, (2, None)))
    assert torch.equal(found[0]["tensors"]["w"], torch.arange(3.0))
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_a_snapshot_is_not_wanted_before_its_time_nor_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kept = run_directory.Snapshots(tmp_path / "a.partial")
    assert not kept.wants(1, 10)
    monkeypatch.setattr(run_directory, "SNAPSHOT_SECONDS", 0.0)
    assert kept.wants(1, 10)
    assert not kept.wants(10, 10)


def test_what_does_not_belong_is_refused(tmp_path: Path):
    run = tmp_path / "run"
    search(RunDir.open(run, ASKED, resume=False), net(), [])
    with pytest.raises(RunError, match="holds a run already: pass resume=True"):
        RunDir.open(run, ASKED, resume=False)
    with pytest.raises(RunError, match=r"holds a run with other settings .*\n  seed: 0 -> 1\n"):
        RunDir.open(run, {**ASKED, "seed": 1}, resume=True)
    with pytest.raises(RunError, match=r"other settings .*\n  budget: \(not set\) -> 3\n"):
        RunDir.open(run, {**ASKED, "budget": 3}, resume=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("years of work")
    for resume in (False, True):
        with pytest.raises(RunError, match=r"holds thesis\.tex and no run"):
            RunDir.open(other, ASKED, resume=resume)
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]


def test_resume_begins_where_there_is_nothing(tmp_path: Path):
    run = RunDir.open(tmp_path / "deep" / "run", ASKED, resume=True)
    assert search(run, net(), [])[1] == 0.1 + 0.2


def test_another_environment_is_a_note_and_no_refusal(tmp_path: Path):
    RunDir.open(tmp_path, ASKED, resume=False)
    run = RunDir.open(tmp_path, {**ASKED, "environment": {"torch": "3"}}, resume=True)
    assert "another environment" in run.notes[0]


def test_another_sequence_is_refused(tmp_path: Path):
    search(RunDir.open(tmp_path, ASKED, resume=False), net(), [])
    run = RunDir.open(tmp_path, ASKED, resume=True)
    with pytest.raises(RunError, match="has stage 'weights' where this run has value 'score'"):
        run.recall("score", lambda: 1)


def test_weights_of_another_model_are_refused(tmp_path: Path):
    search(RunDir.open(tmp_path, ASKED, resume=False), net(), [])
    with pytest.raises(Exception, match="another model"):
        search(RunDir.open(tmp_path, ASKED, resume=True), nn.Linear(3, 3), [])


@pytest.mark.parametrize("content", [b"", b"garbage", b"PK\x03\x04"])
def test_damaged_files_are_errors_that_name_them(tmp_path: Path, content: bytes):
    search(RunDir.open(tmp_path, ASKED, resume=False), net(), [])
    [first, *_] = sorted((tmp_path / "stages").iterdir())
    first.write_bytes(content)
    with pytest.raises(RunError, match=rf"{first.name} is damaged"):
        search(RunDir.open(tmp_path, ASKED, resume=True), net(), [])
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(RunError, match=r"config\.json is damaged"):
        RunDir.open(tmp_path, ASKED, resume=True)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_no_changed_byte_of_a_snapshot_is_more_than_an_error_of_ours(tmp_path: Path):
    torch.save({"step": 3, "tensors": {"w": torch.arange(4.0)}, "rng": (1, (2, None))}, tmp_path / "a.partial")
    whole, rng = (tmp_path / "a.partial").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(300):
        changed = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else whole)
        for _ in range(rng.randrange(1, 20)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        (tmp_path / "a.partial").write_bytes(changed)
        try:
            run_directory.Snapshots(tmp_path / "a.partial").last()
        except RunError:
            refused += 1
    assert refused > 100


def test_nothing_that_is_loaded_runs_code(tmp_path: Path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    search(RunDir.open(tmp_path / "run", ASKED, resume=False), net(), [])
    [first, *_] = sorted((tmp_path / "run" / "stages").iterdir())
    torch.save({"0.weight": Bomb()}, first)
    with pytest.raises(RunError, match="is damaged"):
        search(RunDir.open(tmp_path / "run", ASKED, resume=True), net(), [])
    assert not (tmp_path / "ran").exists()


def saving(files: dict[str, str]):
    """Saves a result of these files, and counts."""
    saved = []

    def save(folder: Path) -> None:
        saved.append(folder)
        for name, text in files.items():
            path = folder.parent / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    return save, saved


FILES = {"result/result.json": "{}", "result/program/graph.json": "[]", "report.html": "<html>"}


def left(path: Path) -> dict[str, str]:
    return {name: (path / name).read_text() for name in FILES if (path / name).is_file()}


@pytest.mark.parametrize(
    "change",
    [
        lambda path: shutil.rmtree(path / "result"),
        lambda path: (path / "report.html").unlink(),
        lambda path: (path / "result/result.json").unlink(),
        lambda path: (path / "result/program/graph.json").write_text("{}"),
        lambda path: (path / "result/result.json").write_bytes(b""),
    ],
    ids=["no result", "no page", "no result.json", "changed", "empty"],
)
def test_a_result_that_is_gone_or_changed_is_written_again(tmp_path: Path, change):
    save, saved = saving(FILES)
    with RunDir.open(tmp_path, ASKED, resume=False) as run:
        assert run.finish(save) is None
    change(tmp_path)
    for many in (1, 0):
        told = []
        with RunDir.open(tmp_path, ASKED, resume=True) as run:
            run.finish(save, told.append)
        assert len(saved) == 2
        assert left(tmp_path) == FILES
        assert len(told) == many


def test_what_a_user_put_beside_the_result_is_left_alone(tmp_path: Path):
    save, saved = saving(FILES)
    with RunDir.open(tmp_path, ASKED, resume=False) as run:
        run.finish(save)
    (tmp_path / "result" / "mine.txt").write_text("mine")
    with RunDir.open(tmp_path, ASKED, resume=True) as run:
        run.finish(save)
    assert len(saved) == 1
    (tmp_path / "result" / "result.json").unlink()
    with RunDir.open(tmp_path, ASKED, resume=True) as run:
        run.finish(save)
    assert len(saved) == 2
    assert (tmp_path / "result" / "mine.txt").read_text() == "mine"


def pipe(path: Path) -> None:
    os.mkfifo(path)


def bound(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


FOLDERS = ("stages", "best", "result")
READ = ("config.json", "stages", "stages/001-weights.weights", "stages/003-fine-tune.partial")
"""What cannot be empty."""
NAMES = ("journal.jsonl", "report.html", ".lock", "best", "result", *READ)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("make", [pipe, bound, endless, dangling, Path.mkdir, Path.touch], ids=lambda m: m.__name__)
def test_what_should_not_be_there_is_one_error_and_no_wait(tmp_path: Path, name: str, make):
    def unfinished(keeper):
        keeper.last()
        raise KeyboardInterrupt

    def some() -> None:
        with RunDir.open(tmp_path, ASKED, resume=True) as run:
            run.stage("weights", net(), adding(0.5, [])(net()))
            run.recall("score", lambda: 1.0)
            with pytest.raises(KeyboardInterrupt):
                run.stage("fine-tune", net(), unfinished)

    some()
    there = tmp_path / name
    if there.is_dir():
        shutil.rmtree(there)
    there.unlink(missing_ok=True)
    make(there)
    if name not in READ and (there.is_dir() if name in FOLDERS else there.is_file()):
        some()
        return
    with pytest.raises(RunError, match=re.escape(str(tmp_path))):
        some()


def test_weights_of_another_stage_are_refused_though_they_are_whole(tmp_path: Path):
    search(RunDir.open(tmp_path, ASKED, resume=False), net(), [])
    first, second = sorted((tmp_path / "stages").iterdir())
    second.write_bytes(first.read_bytes())
    with pytest.raises(RunError, match="its checksum differs from the one in the journal"):
        search(RunDir.open(tmp_path, ASKED, resume=True), net(), [])


def test_a_value_that_no_run_keeps_is_refused(tmp_path: Path):
    RunDir.open(tmp_path, ASKED, resume=False).recall("seconds", lambda: "long")
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "001-weights.weights").touch()
    with (
        RunDir.open(tmp_path, ASKED, resume=True) as run,
        pytest.raises(RunError, match="'seconds' is not of its type"),
    ):
        run.recall("seconds", lambda: 1.0, lambda value: isinstance(value, float))


@pytest.mark.parametrize("content", ['{"format": 1, "format": 1}', "[" * 10**5, "[1]", '"text"', "\0" * 64])
def test_a_config_that_no_run_writes_is_refused(tmp_path: Path, content: str):
    search(RunDir.open(tmp_path, ASKED, resume=False), net(), [])
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=r"config\.json is damaged: .*, or start in another directory"):
        RunDir.open(tmp_path, ASKED, resume=True)


def test_the_end_is_kept_once_with_what_there_is_to_tell_of_it(tmp_path: Path):
    saved = []

    def save(folder: Path) -> str:
        saved.append(folder)
        return "half of it"

    assert RunDir.open(tmp_path, ASKED, resume=False).finish(save) == "half of it"
    assert RunDir.open(tmp_path, ASKED, resume=True).finish(save) == "half of it"
    assert saved == [tmp_path / "result"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_never_trained_stands_in_nobodys_way(tmp_path: Path, resume: bool):
    with RunDir.open(tmp_path, ASKED, resume=False) as refused:
        refused.recall("latency", lambda: 3.0)
    run = RunDir.open(tmp_path, {**ASKED, "budget": 0.9}, resume=resume)
    assert run.recall("latency", lambda: 5.0) == 5.0
    assert json.loads((tmp_path / "config.json").read_text())["budget"] == 0.9


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path):
    search(RunDir.open(tmp_path, ASKED, resume=False), net(), [])
    late = tmp_path / "stages" / "001-weights.partial"
    late.write_text("of a stage that ended before it was removed")
    half = [tmp_path / ".config.json.x1", tmp_path / "stages" / ".001-weights.partial.x2", tmp_path / ".best.x3"]
    for path in half[:2]:
        path.write_text("half")
    half[2].mkdir()
    (half[2] / "weights.safetensors").write_text("half")
    search(RunDir.open(tmp_path, ASKED, resume=True), net(), [])
    assert not any(path.exists() for path in (late, *half))


HOLDING = """
import sys
from fxsurgery.errors import RunError
from fxsurgery.runs.run_directory import RunDir

try:
    run = RunDir.open(sys.argv[1], {"seed": 0}, resume=True)
except RunError as error:
    print("RunError:", error)
else:
    print("opened", flush=True)
    if len(sys.argv) > 2:
        sys.stdin.read()
"""


def test_a_second_process_is_refused_until_the_first_is_gone(tmp_path: Path):
    line = [sys.executable, "-c", HOLDING, str(tmp_path)]
    around = {"env": {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}, "text": True}
    with subprocess.Popen([*line, "hold"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, **around) as first:
        assert first.stdout.readline() == "opened\n"
        with pytest.raises(
            RunError, match="another process is working there; wait until it ends, or start in another directory"
        ):
            RunDir.open(tmp_path, {"seed": 0}, resume=True)
        first.kill()
    with RunDir.open(tmp_path, {"seed": 0}, resume=True):
        refused = subprocess.run(line, capture_output=True, check=True, **around)
        assert "another process is working there" in refused.stdout
    assert "opened" in subprocess.run(line, capture_output=True, check=True, **around).stdout


def test_another_thread_is_refused_until_the_first_is_done(tmp_path: Path):
    refused = []

    def meanwhile() -> None:
        try:
            RunDir.open(tmp_path, ASKED, resume=True)
        except RunError as error:
            refused.append(str(error))

    def in_a_thread() -> None:
        thread = threading.Thread(target=meanwhile)
        thread.start()
        thread.join()

    with RunDir.open(tmp_path, ASKED, resume=True) as run:
        in_a_thread()
        meanwhile()
        run.recall("value", lambda: 1)
    in_a_thread()
    assert len(refused) == 2
    assert all("another run of this process is working there" in why for why in nonempty(refused))


def test_config_says_what_was_asked_for(tmp_path: Path):
    RunDir.open(tmp_path, ASKED, resume=False)
    assert json.loads((tmp_path / "config.json").read_text()) == {"format": 1, **ASKED}


MOUNTED = """
import sys
from pathlib import Path
import torch
from torch import nn
from fxsurgery.errors import RunError
from fxsurgery.runs.run_directory import RunDir

def work(keeper):
    return []

where = Path(sys.argv[1])
try:
    run = RunDir.open(where / "run", {"seed": 0}, resume=True)
    print("opened", flush=True)
    run.stage("small", nn.Linear(8, 8), work)
    print("small kept", flush=True)
    run.stage("large", nn.Linear(2048, 2048), work)
    print("large kept", flush=True)
except RunError as error:
    print("RunError:", error)
"""


def mounted(tmp_path: Path, options: str, script: str) -> str:
    """What a script prints on a small file system of its own, mounted where nobody else sees it."""
    where, program = tmp_path / "disk", tmp_path / "script.py"
    where.mkdir()
    program.write_text(textwrap.dedent(script))
    line = f"mount -t tmpfs -o {options} tmpfs {where} || exit 77; {sys.executable} {program} {where}"
    try:
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", line], capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path: Path):
    shown = mounted(tmp_path, "size=1m", MOUNTED)
    assert "small kept" in shown
    assert "large kept" not in shown
    assert "No space left on device; free some space there; existing files are unchanged" in shown


def test_a_read_only_directory_is_a_clear_error(tmp_path: Path):
    shown = mounted(tmp_path, "ro,size=1m", MOUNTED)
    assert "opened" not in shown
    assert "cannot be written to: no permission, or a read-only file system; choose another directory" in shown
