"""Jobs for processes that are killed: `python killing.py WHAT FOLDER SEED`.

`endless` works on jobs that never end, each of which leaves its process's number in FOLDER. `again` runs two batches
without a break, then in children that are killed (SIGKILL) at random points and begun again on the same run directory,
with whatever executor, until one comes to the end; it prints JSON: both digests, and how far each kill let it come.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader

from execution.jobs import jobs, program, task, told
from fxsurgery.execution import Job, JobRunner, fork_pool
from fxsurgery.runs import run_directory
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.training import Recipe, sgd
from noisy import Noisy


class Telling(Noisy):
    """Leaves the number of every process that reads it in a folder."""

    def __init__(self, count: int, folder: Path) -> None:
        super().__init__(count)
        self.folder = folder

    def __getitem__(self, index: int):
        (self.folder / f"{os.getpid()}.read").touch()
        return super().__getitem__(index)


def alive(process: int) -> bool:
    """Whether a process is there, and not only as what its parent has not taken note of."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def telling(folder: Path, loader_workers: int = 1):
    """A task whose processes, loaders' workers among them, leave their numbers."""

    def loss(output, target):
        (folder / f"{os.getpid()}.trained").touch()
        return nn.functional.cross_entropy(output, target)

    loader = DataLoader(Telling(48, folder), 16, num_workers=loader_workers)
    return task(train_data=loader, loss=loss)


def left(folder: Path, kind: str = "*") -> set[int]:
    return {int(path.stem) for path in folder.glob(f"*.{kind}")}


def endless(count: int) -> list[Job]:
    return [
        Job(f"endless {i}", program(8), Recipe(steps=10**7, optimizer=sgd(0.01), validations=1), i)
        for i in range(count)
    ]


def search(first: list[Job], folder: Path, executor: str) -> str:
    """Two batches, the second of which trains what the first came to."""
    workshop = JobRunner(executor, workers=2, device="cpu")
    with RunDir.open(folder, {"seed": 0}, resume=True) as run:
        ended = workshop.run(first, task(), run)
        ended[2].forget()
        value = run.recall("value", lambda: 0.1 + 0.2)
        second = [
            Job(f"again {i}", end.trained(job.program), job.recipe, seed=9)
            for i, (job, end) in enumerate(zip(first[:2], ended, strict=False))
        ]
        after = workshop.run(second, task(), run)
        curves = [[{k: v for k, v in r.items() if k != "seconds"} for r in end.records] for end in ended]
        return hashlib.sha256(repr((told(after), curves, value)).encode()).hexdigest()


def killed(first: list[Job], folder: Path, rng: random.Random, longest: float) -> str | None:
    """Run in a child that is killed at some point; the digest, if it came to the end before."""
    digest, executor = folder.parent / "digest", rng.choice(["in-process", "processes", "processes"])
    child = os.fork()
    if not child:
        try:
            digest.write_text(search(first, folder, executor))
        finally:
            os._exit(0 if digest.exists() else 1)
    time.sleep(rng.uniform(0.1, longest))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not os.WIFSIGNALED(status):
        assert digest.exists(), "the child failed by itself"
    return digest.read_text() if digest.exists() and digest.stat().st_size else None


def under_way(folder: Path) -> list[str]:
    """What a killed run had begun and not ended, and what it had ended."""
    lines = (folder / "journal.jsonl").read_text().splitlines() if (folder / "journal.jsonl").exists() else []
    partial = sorted(path.stem for path in (folder / "stages").glob("*.partial"))
    return [*partial, f"{len([line for line in lines if line.endswith('}')])} records"]


def again(scratch: Path, seed: int) -> None:
    torch.set_num_threads(1)
    run_directory.SNAPSHOT_SECONDS = 0.02
    first = jobs(3, steps=40)
    began = time.monotonic()
    whole = search(first, scratch / "whole", "processes")
    longest, rng = 0.5 * (time.monotonic() - began), random.Random(seed)
    kills, end = [], None
    while end is None:
        end = killed(first, scratch / "killed", rng, longest)
        kills.append(under_way(scratch / "killed"))
        assert len(kills) < 200, "no run comes to its end"
    left = sorted(path.name for path in (scratch / "killed" / "stages").iterdir())
    sys.stdout.write(json.dumps({"whole": whole, "end": end, "kills": kills[:-1], "left": left}) + "\n")


if __name__ == "__main__":
    what, folder, seed = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    if what == "again":
        again(folder, seed)
    if what == "lifeline":
        fork_pool._prctl = lambda: None
    if what in {"endless", "lifeline"}:
        JobRunner("processes", workers=2, device="cpu").run(endless(3), telling(folder), RunDir())
