"""Runs models under tools, each pair in a process of its own, and keeps one line a pair in the run file.

A process that reaches its limit (CPU seconds, twice that on the clock, memory) is killed; its row, which it
wrote as it went, then says `hung` and in which stage.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from benchmarks.coverage.record import Row, memory_mib
from benchmarks.coverage.samples import Sample

SPARE_MIB = 3 * 1024
POLL_S = 0.25
QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTHONWARNINGS": "ignore",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_VERBOSITY": "critical",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
}


@dataclass(frozen=True)
class Settings:
    """What is the same for every pair of a sweep."""

    ratio: float = 0.3
    seed: int = 0
    limit_s: int = 120
    jobs: int = 2
    commit: str = ""


Pair = tuple[Sample, str]


def sweep(pairs: Sequence[Pair], settings: Settings) -> Iterator[Row]:
    """The row of each pair as it comes: first those that share the machine, then the heavy ones alone."""
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
    """The row of one pair, from a process of its own."""
    with tempfile.TemporaryDirectory(prefix="coverage-") as folder:
        out, complaints = Path(folder) / "row.json", Path(folder) / "stderr"
        command = [sys.executable, "-m", "benchmarks.coverage.child", model, tool, f"--out={out}",
                   f"--ratio={settings.ratio}", f"--seed={settings.seed}", f"--limit={settings.limit_s}"]  # fmt: skip
        with complaints.open("w", encoding="utf-8") as stderr:
            process = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=stderr, env={**os.environ, **QUIET, "TMPDIR": folder}
            )
            killed = _watch(process, memory_limit_mib, 20 * settings.limit_s)
        row = Row.read(out.read_text(encoding="utf-8")) if out.exists() else Row(model, tool)
        return settle(row, process.returncode, killed, _last_line(complaints), settings)


def settle(row: Row, code: int, killed: str, complaint: str, settings: Settings) -> Row:
    """The row with a verdict, whatever became of its process."""
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


def _watch(process: subprocess.Popen[bytes], memory_limit_mib: float, patience_s: float) -> str:
    """Wait for the process; what it was killed for, if it was."""
    began = time.monotonic()
    try:
        while process.poll() is None:
            used = memory_mib(process.pid, "VmRSS")
            if used > memory_limit_mib:
                return _kill(process, f"{memory_limit_mib / 1024:.1f} GiB")
            if patience_s and time.monotonic() - began > patience_s:
                return _kill(process, f"{patience_s:.0f} s")
            time.sleep(POLL_S)
    finally:
        if process.poll() is None:
            _kill(process, "")
    return ""


def _kill(process: "subprocess.Popen[bytes]", why: str) -> str:
    process.kill()
    process.wait()
    return why


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else ""


def _total_memory_mib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
