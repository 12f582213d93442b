"""The work on one job, the same wherever it is done: on one thread, since the number of threads changes rounding."""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fxsurgery.errors import DivergedError
from fxsurgery.execution.job import Job
from fxsurgery.training import Hooks, Progress, Task, fit
from fxsurgery.training.snapshot import Checkpointer, tensors_of


@dataclass(frozen=True, eq=False)
class Report:
    """What the work on a job came to."""

    records: tuple[Mapping[str, Any], ...]
    tensors: Mapping[str, Tensor] | None
    """Every parameter and buffer by name, on the CPU; `None` where the training diverged."""
    failure: str | None = None
    """Why there are none."""


def work_on(
    job: Job, task: Task, *, device: str | None = None, keeper: Checkpointer | None = None, hooks: Hooks | None = None
) -> Report:
    """Train a copy of the job's program, which lives no longer than this.

    Raises:
        SurgeryError: what `fxsurgery.training.fit` raises, but that the training diverged.
    """
    model, progress = job.program.trainable_copy(), Progress.quiet()
    own = replace(hooks or Hooks(), objective=job.objective)
    try:
        fit(
            model, task, job.recipe, seed=job.seed, stage=job.name, hooks=own, progress=progress, device=device,
            keeper=keeper,
        )  # fmt: skip
    except DivergedError as error:
        return Report(tuple(progress.history), None, str(error))
    return Report(tuple(progress.history), tensors_of(model))


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block an operation runs on a single thread.

    PyTorch keeps the number for each thread, and for the process what new threads begin with: blocks of several threads
    put back what there was before the first of them.
    """
    with _COUNTS_LOCK:
        _counts.append(_counts[0] if _counts else torch.get_num_threads())
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with _COUNTS_LOCK:
            torch.set_num_threads(_counts.pop())


_COUNTS_LOCK = threading.Lock()
_counts = list[int]()
"""One for each block that runs: the number of threads before the first of them."""
