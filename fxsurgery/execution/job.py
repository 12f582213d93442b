"""An independent training, run in process, in another process, or on another machine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxsurgery.program import Program
from fxsurgery.training import Objective, Recipe, task_objective
from fxsurgery.training.snapshot import put_back


@dataclass(frozen=True, eq=False)
class Job:
    """Train a copy of `program`, which is not changed."""

    name: str
    """Name of the job in the journal and in messages; unique in its batch."""
    program: Program
    recipe: Recipe
    seed: int
    work: float = 0.0
    """Amount of work, in any unit that its batch shares. Processes start the longest jobs first, so that they finish at
    about the same time; the order does not affect results."""
    objective: Objective = task_objective
    """How a batch becomes a loss."""


def _nothing() -> None:
    """Do nothing: weights that are not stored are freed with their last reference."""


@dataclass(frozen=True, eq=False)
class JobResult:
    """The result of a job."""

    records: tuple[Mapping[str, Any], ...]
    """Its training curve, in the form of `Progress.history`."""
    failure: str | None
    """Why it has no weights: the training diverged, or the time limit stopped it."""
    stopped: bool
    """Whether the time limit stopped it."""
    weights: Callable[[], Mapping[str, Tensor]]
    """Returns every parameter and buffer by name; reads them from the run directory if there is one."""
    is_recalled: bool = False
    """Whether it ended in the run that this one resumes."""
    forget: Callable[[], None] = _nothing
    """Deletes the weights, if they were not loaded and are no longer needed."""

    @property
    def diverged(self) -> bool:
        """Whether the training failed, and was not stopped by the clock."""
        return self.failure is not None and not self.stopped

    def trained(self, program: Program) -> Program:
        """Return the program of the job with its final weights.

        Raises:
            RunError: the weights were deleted, or cannot be read.
            TrainingError: there are no weights, or they do not fit `program`.
        """
        model = program.trainable_copy()
        put_back(model, self.weights())
        return program.with_weights(model)
