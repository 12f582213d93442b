"""Callbacks: observe a run through read-only records of its stages, steps and validations.

A callback cannot change the result: it gets plain numbers, and the random states and the gradient mode are restored
after each call. Only the first process of a distributed run calls it. A training that runs as a job, such as a match
of `ectonas`, is reported when it has ended, from its recorded curve, wherever it ran. What a resumed run recalls is
not reported again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

Numbers: TypeAlias = Mapping[str, float]
Hyperparameters: TypeAlias = Mapping[str, bool | int | float | str]


@dataclass(frozen=True)
class RunBegin:
    """A run is about to search and train."""

    method: str
    hyperparameters: Hyperparameters
    """Arguments and settings, tables with dots: `budget.macs`."""


@dataclass(frozen=True)
class StageBegin:
    """A stage starts to train."""

    stage: str
    steps: int
    """Number of optimizer steps."""
    metric: str
    """Name of the validation metric."""
    step: int = 0
    """Steps done before, if a resumed run continues a stage from a snapshot."""


@dataclass(frozen=True)
class StepEnd:
    """An optimizer step of a stage is done."""

    stage: str
    step: int
    """Steps done, from 1."""
    steps: int
    epoch: int
    """From 0."""
    loss: float
    """Loss of the step; of a job, mean since the last record of its curve."""
    lr: float
    """Learning rate of the first parameter group."""
    global_step: int
    """Optimizer steps of the whole run so far."""
    terms: Numbers = field(default_factory=dict)
    """Parts of the loss by name, if the stage trains on several."""


@dataclass(frozen=True)
class Validation:
    """The validation data were scored, in a stage or between two of them."""

    stage: str
    """Name of the stage; between stages, name of the model: `original`, `pruned`, `fine-tuned`."""
    step: int
    """Steps of the stage so far; 0 between stages."""
    metric: str
    """Name of the metric."""
    score: float
    """Its value; of several, the selected one."""
    global_step: int
    loss: float | None = None
    """Mean validation loss; `None` for a job, whose curve does not have it."""
    figures: Numbers = field(default_factory=dict)
    """Every value of the metric, by name."""


@dataclass(frozen=True)
class StageEnd:
    """A stage has ended."""

    stage: str
    steps: int
    """Steps done."""
    score: float | None
    """Last validation score of the stage; `None` if there was none."""
    failure: str | None = None
    """Why the stage failed; `None` if it did not."""


@dataclass(frozen=True)
class RunEnd:
    """The run has ended."""

    results: Numbers = field(default_factory=dict)
    """Scores and costs of the result: `val/accuracy`, `params`, `macs`; empty after a failure."""
    failure: str | None = None


Event: TypeAlias = RunBegin | StageBegin | StepEnd | Validation | StageEnd | RunEnd


class Callback:
    """Base class of callbacks: override the methods that you need.

    Example:
        >>> class PrintScores(Callback):
        ...     def on_validation(self, event):
        ...         print(f"{event.stage}: {event.metric} {event.score:.2f}")
        >>> PrintScores().on_validation(Validation("fine-tune", 10, "accuracy", 0.75, 10))
        fine-tune: accuracy 0.75
    """

    @property
    def label(self) -> str:
        """Name of the callback in messages."""
        return f"callback {type(self).__name__}"

    def on_run_begin(self, event: RunBegin) -> None:
        """Handle the beginning of the run, before anything trains."""

    def on_stage_begin(self, event: StageBegin) -> None:
        """Handle the beginning of a stage."""

    def on_step_end(self, event: StepEnd) -> None:
        """Handle the end of an optimizer step."""

    def on_validation(self, event: Validation) -> None:
        """Handle a score on the validation data."""

    def on_stage_end(self, event: StageEnd) -> None:
        """Handle the end of a stage, also of one that failed."""

    def on_run_end(self, event: RunEnd) -> None:
        """Handle the end of the run, also of one that failed."""
