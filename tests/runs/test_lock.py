"""A run directory in use is refused, to another process as to another thread, and is free when the run has ended."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from fxsurgery.errors import RunError
from fxsurgery.runs.lock import FILE, Lock

TAKE = """
import sys
from pathlib import Path
from fxsurgery.errors import RunError
from fxsurgery.runs.lock import Lock

try:
    Lock(Path(sys.argv[1]))
except RunError:
    sys.exit(3)
"""


def is_free_for_others(folder: Path) -> bool:
    around = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    code = subprocess.run([sys.executable, "-c", TAKE, str(folder)], check=False, env=around).returncode
    assert code in {0, 3}
    return code == 0


def in_a_thread(work: Callable[[], object]) -> BaseException | None:
    """What `work` raises in another thread."""
    raised = list[BaseException]()

    def run() -> None:
        try:
            work()
        except RunError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return next(iter(raised), None)


def test_another_thread_is_refused_and_lets_no_other_process_in(tmp_path: Path):
    held = Lock(tmp_path)
    refused = in_a_thread(lambda: Lock(tmp_path))
    assert "another run of this process is working there; wait until it ends" in str(refused)
    assert not is_free_for_others(tmp_path)
    held.release()
    held.release()
    assert is_free_for_others(tmp_path)
    assert in_a_thread(lambda: Lock(tmp_path).release()) is None


def test_the_directory_counts_and_not_what_it_is_called(tmp_path: Path):
    folder, other = tmp_path / "run", tmp_path / "other"
    folder.mkdir()
    other.mkdir()
    (tmp_path / "link").symlink_to(folder)
    held = Lock(folder)
    assert in_a_thread(lambda: Lock(tmp_path / "link")) is not None
    assert in_a_thread(lambda: Lock(tmp_path / "other" / ".." / "run")) is not None
    assert in_a_thread(lambda: Lock(other).release()) is None
    held.release()


def test_a_run_within_a_run_is_refused(tmp_path: Path):
    held = Lock(tmp_path)
    held.working = True
    with pytest.raises(RunError, match="another run of this process"):
        Lock(tmp_path)
    held.release()
    Lock(tmp_path).release()


def test_a_lock_that_nobody_works_under_is_given_up_for_the_next_of_its_thread(tmp_path: Path):
    forgotten = Lock(tmp_path)
    held = Lock(tmp_path)
    forgotten.release()
    assert not is_free_for_others(tmp_path)
    assert in_a_thread(lambda: Lock(tmp_path)) is not None
    held.release()


def test_of_many_threads_one_gets_it(tmp_path: Path):
    held, refused, start = list[Lock](), list[RunError](), threading.Barrier(8)

    def take() -> None:
        start.wait()
        try:
            held.append(Lock(tmp_path))
        except RunError as error:
            refused.append(error)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(held), len(refused)) == (1, 7)
    assert not is_free_for_others(tmp_path)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_is_refused_while_its_parent_works_and_not_after(tmp_path: Path):
    def in_a_fork() -> bool:
        child = os.fork()
        if not child:
            try:
                Lock(tmp_path)
            except RunError:
                os._exit(3)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

    held = Lock(tmp_path)
    assert not in_a_fork()
    held.release()
    assert in_a_fork()


@pytest.mark.parametrize("kind", ["pipe", "folder", "socket", "dangling link", "device"])
def test_what_is_no_lock_file_is_refused_without_waiting(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    match kind:
        case "pipe":
            os.mkfifo(FILE)
        case "folder":
            Path(FILE).mkdir()
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(FILE)
        case "device":
            Path(FILE).symlink_to("/dev/zero")
        case _:
            Path(FILE).symlink_to("nowhere")
    for _ in range(2):
        with pytest.raises(RunError, match=r"\.lock is not a regular file; remove it"):
            Lock(tmp_path)
    Path(FILE).rmdir() if kind == "folder" else Path(FILE).unlink()
    Lock(tmp_path).release()
