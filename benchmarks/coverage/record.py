"""The outcome of one model under one tool, and the journal that survives its process."""

import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

GOOD = ("pass", "right", "unchecked")
"""Statuses of a model that got smaller and still runs: ours proven; a rival's compared, or not comparable."""


@dataclass
class Stage:
    """Time and memory of one stage."""

    cpu_s: float
    """CPU seconds of the working thread; every model runs on one thread."""
    wall_s: float
    peak_mib: float
    """Peak resident memory above that at the start of the stage."""


@dataclass
class Row:
    """One line of the run file."""

    model: str
    tool: str
    status: str = "running"
    """Ours: pass, unproven, wrong, refused, nothing, crash. Rivals: right, unchecked, wrong, nothing, failed.
    Either: hung. `unbuilt` where the model itself does not run."""
    reason: str = ""
    stage: str = ""
    """The stage that is running, or that ran last."""
    captured: bool = False
    stages: dict[str, Stage] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """Notes of the capture: mainly, which parts are leaves."""
    refusals: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    """Operations without a rule."""
    onnx: str = ""
    """ok; or what failed, and whether the original model fails there too; empty where it was not tried."""
    about: dict[str, Any] = field(default_factory=dict)
    """Commit, ratio, seed, limit."""

    @classmethod
    def read(cls, line: str) -> Self:
        """The row that a line of the run file holds."""
        content = json.loads(line)
        content["stages"] = {name: Stage(**stage) for name, stage in content["stages"].items()}
        return cls(**content)

    def line(self) -> str:
        """The row as a line of the run file."""
        return json.dumps(asdict(self))

    def cpu_s(self, *stages: str) -> float | None:
        """CPU seconds of `stages` together; `None` where one did not end."""
        if any(name not in self.stages for name in stages):
            return None
        return sum(self.stages[name].cpu_s for name in stages)


class Journal:
    """Write a row to disk as it grows, and kill the process when a limit is reached."""

    def __init__(self, row: Row, path: Path | None = None, limit_s: int = 0) -> None:
        self.row = row
        self._path = path
        self._limit_s = limit_s

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens inside, and note it if it ends well."""
        self.row.stage = name
        self.save()
        before = _reset_peak()
        # The clock of the thread: under a limit, Linux counts a process's CPU time in ticks of some milliseconds.
        cpu, wall = time.thread_time(), time.perf_counter()
        yield
        spent = Stage(time.thread_time() - cpu, time.perf_counter() - wall, max(0.0, _peak() - before))
        self.row.stages[name] = spent
        self.save()

    def arm(self) -> None:
        """Restart the limit: in CPU seconds, and twice as long on the clock."""
        if self._limit_s:
            _, hard = resource.getrlimit(resource.RLIMIT_CPU)
            resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time()) + 1 + self._limit_s, hard))
            signal.setitimer(signal.ITIMER_REAL, 2 * self._limit_s)

    def end(self, status: str, reason: str = "") -> None:
        """The verdict."""
        self.row.status, self.row.reason = status, reason
        self.save()

    def save(self) -> None:
        """Write the whole row to disk."""
        if self._path is not None:
            draft = self._path.with_suffix(".draft")
            draft.write_text(self.row.line(), encoding="utf-8")
            draft.replace(self._path)


def first_line(error: BaseException | str, width: int = 240) -> str:
    """Return the first line of a reason, after the type of the error; without lists of units and local paths."""
    text = without_paths(next((line.strip() for line in str(error).splitlines() if line.strip()), ""))
    text = re.sub(r"prune-channels\(drop=.*?\),leaves=.*?\)", "prune-channels", text)
    kind = f"{type(error).__name__}: " if isinstance(error, BaseException) else ""
    return (kind + text)[:width]


def without_paths(text: str) -> str:
    """The text with files named from where they are installed, or from the repository."""
    return re.sub(r"[^\s(`'\"]*/site-packages/", "", text).replace(f"{Path.cwd()}/", "")


def _reset_peak() -> float:
    """Give freed memory back, or it would hide what the stage takes, and forget the peak; MiB now resident."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    with contextlib.suppress(OSError):
        Path(f"/proc/{os.getpid()}/clear_refs").write_text("5", encoding="ascii")
    return memory_mib(os.getpid(), "VmRSS")


def _peak() -> float:
    return memory_mib(os.getpid(), "VmHWM")


def memory_mib(process: int, what: str) -> float:
    """A line of the process's status file, in MiB; 0 where the process or the file is not there."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(f"{what}:"):
                return int(line.split()[1]) / 1024
    return 0.0
