"""A training that stands alone, to be run here, in another process, or on another machine."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxsurgery.program import Program
from fxsurgery.training import Objective, Recipe, task_objective
from fxsurgery.training.snapshot import put_back


@dataclass(frozen=True, eq=False)
class Job:
    """Train a copy of `program`, which is left as it is."""

    name: str
    """What the journal and messages call it; of its batch, the only one of this name."""
    program: Program
    recipe: Recipe
    seed: int
    work: float = 0.0
    """How much there is to do, in a unit of the batch's own. Processes begin with the longest jobs, so that at the end
    none works while the others wait; what a job comes to is the same."""
    objective: Objective = task_objective
    """How a batch becomes a loss."""


def _nothing() -> None:
    """Weights that are not kept anywhere are given up by letting go of them."""


@dataclass(frozen=True, eq=False)
class JobResult:
    """What a job came to."""

    records: tuple[Mapping[str, Any], ...]
    """Its training curve, as `Progress.history` keeps one."""
    failure: str | None
    """Why it has no weights: the training diverged, or was stopped by the clock."""
    stopped: bool
    """Whether that was by the clock."""
    weights: Callable[[], Mapping[str, Tensor]]
    """Every parameter and buffer by name: read from the run directory where there is one."""
    is_recalled: bool = False
    """Whether it ended in the run that this one resumes."""
    forget: Callable[[], None] = _nothing
    """Gives the weights up, for good: for those that were never asked for and never will be."""

    @property
    def diverged(self) -> bool:
        """Whether the training failed, and was not stopped by the clock."""
        return self.failure is not None and not self.stopped

    def trained(self, program: Program) -> Program:
        """The job's program with the weights that it ended with.

        Raises:
            RunError: they were given up, or cannot be read.
            TrainingError: there are none, or `program` is another one.
        """
        model = program.trainable_copy()
        put_back(model, self.weights())
        return program.with_weights(model)
