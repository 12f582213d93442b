"""Run one job: on a single thread everywhere, since the number of threads changes rounding."""

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
    """The result of running a job."""

    records: tuple[Mapping[str, Any], ...]
    tensors: Mapping[str, Tensor] | None
    """Every parameter and buffer by name, on the CPU; `None` if the training diverged."""
    failure: str | None = None
    """Why there are no weights."""


def work_on(
    job: Job, task: Task, *, device: str | None = None, keeper: Checkpointer | None = None, hooks: Hooks | None = None
) -> Report:
    """Train a copy of the program of a job.

    Raises:
        SurgeryError: `fxsurgery.training.fit` raised it; a diverged training is a result instead.
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
    """Run operations on a single thread within the block.

    PyTorch keeps one number per thread, and one per process for new threads: when blocks run in several threads, each
    restores the number from before the first of them.
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
"""One entry per running block: the number of threads before the first of them."""
