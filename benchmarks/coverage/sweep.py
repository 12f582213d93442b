"""Runs models under tools, each pair in a process of its own, and keeps one line a pair in the run file.

The processes are forked off one that has imported the libraries and run each tool once on a tiny net.

A process that reaches its limit (CPU seconds, twice that on the clock, memory) is killed; its row, which it
wrote as it went, then says `hung` and in which stage.
"""

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing.context import ForkProcess
from pathlib import Path

from benchmarks.coverage import child
from benchmarks.coverage.record import Journal, Row, memory_mib
from benchmarks.coverage.samples import Sample

FORK = multiprocessing.get_context("fork")
SPARE_MIB = 3 * 1024
POLL_S = 0.25


@dataclass(frozen=True)
class Settings:
    """Settings of every pair of a sweep."""

    ratio: float = 0.3
    seed: int = 0
    limit_s: int = 150
    jobs: int = 2
    commit: str = ""


Pair = tuple[Sample, str]


def sweep(pairs: Sequence[Pair], settings: Settings) -> Iterator[Row]:
    """The row of each pair as it comes: first those that share the machine, then the heavy ones alone."""
    child.prepare({tool for _, tool in pairs})
    light = [pair for pair in pairs if not pair[0].heavy]
    heavy = [pair for pair in pairs if pair[0].heavy]
    for batch, jobs in ((light, settings.jobs), (heavy, 1)):
        memory = (_total_memory_mib() - SPARE_MIB) / jobs
        with ThreadPoolExecutor(jobs) as pool:
            waiting = [pool.submit(isolated, sample.name, tool, settings, memory) for sample, tool in batch]
            try:
                for done in as_completed(waiting):
                    yield done.result()
            finally:
                pool.shutdown(cancel_futures=True)


def isolated(model: str, tool: str, settings: Settings, memory_limit_mib: float) -> Row:
    """Return the row of one pair, from a process of its own."""
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        out, complaints = Path(folder) / "row.json", Path(folder) / "stderr"
        journal = Journal(Row(model, tool), out, settings.limit_s)
        complaints.touch()  # A process killed at once never came to open it.
        process = FORK.Process(target=_run, args=(journal, settings, complaints))
        process.start()
        killed = _watch(process, memory_limit_mib, 20 * settings.limit_s)
        row = Row.read(out.read_text(encoding="utf-8")) if out.exists() else Row(model, tool)
        return settle(row, process.exitcode or 0, killed, _last_line(complaints), settings)


def _run(journal: Journal, settings: Settings, complaints: Path) -> None:
    """Run a pair in the forked process."""
    tempfile.tempdir = str(complaints.parent)
    with complaints.open("w", encoding="utf-8") as stderr:
        os.dup2(stderr.fileno(), 2)
        child.cover(journal, ratio=settings.ratio, seed=settings.seed)


def settle(row: Row, code: int, killed: str, complaint: str, settings: Settings) -> Row:
    """Return the row with a verdict, however its process ended."""
    row.about = {"commit": settings.commit, "ratio": settings.ratio, "seed": settings.seed, "limit": settings.limit_s}
    if row.status != "running":
        return row
    if -code in {signal.SIGXCPU, signal.SIGALRM, signal.SIGKILL}:
        clock = {-signal.SIGXCPU: f"{settings.limit_s} CPU-s", -signal.SIGALRM: f"{2 * settings.limit_s} s"}
        row.status, row.reason = "hung", f"{row.stage or 'start'}: over {killed or clock.get(code, 'a limit')}"
    else:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        ours = row.tool == "fxsurgery"
        row.status, row.reason = "crash" if ours else "failed", f"{row.stage or 'start'}: {how}: {complaint}"[:240]
    return row


def _watch(process: ForkProcess, memory_limit_mib: float, patience_s: float) -> str:
    """Wait for the process; return why it was killed, if it was."""
    began = time.monotonic()
    try:
        while process.is_alive():
            used = memory_mib(process.pid or 0, "VmRSS")
            if used > memory_limit_mib:
                return _kill(process, f"{memory_limit_mib / 1024:.1f} GiB")
            if patience_s and time.monotonic() - began > patience_s:
                return _kill(process, f"{patience_s:.0f} s")
            process.join(POLL_S)
    finally:
        if process.is_alive():
            _kill(process, "")
    return ""


def _kill(process: ForkProcess, why: str) -> str:
    process.kill()
    process.join()
    return why


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _total_memory_mib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
