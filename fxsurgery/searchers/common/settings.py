"""The settings that methods share."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, TypeAlias

from fxsurgery.argument_names import keyword
from fxsurgery.errors import SurgeryError, TrainingError
from fxsurgery.option_types import Count, Range, check_fields
from fxsurgery.training import (
    MAX_STEPS,
    MIN_STEPS,
    OptimizerFactory,
    Schedule,
    ScheduleName,
    require_factors,
    schedule_of,
    sgd,
)

Epochs: TypeAlias = Annotated[float, Range(least=0, below=10**18)]
"""Passes over the training data; 0 skips the stage."""
Steps: TypeAlias = Annotated[int, Range(least=0, below=2**63)]
OptionalRate: TypeAlias = Annotated[float | None, Range(above=0)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that all methods share. The defaults are safe for a trained network of unknown origin.

    Epochs are converted to steps within bounds, so that four batches of data are seen often enough and a million of
    them do not take days: see `fxsurgery.training.steps_for`.

    Raises:
        SurgeryError: a setting has an invalid value.
    """

    weights_epochs: Epochs = 20
    """Epochs of training for a network that is not trained yet."""
    finetune_epochs: Epochs = 15
    """Epochs of fine-tuning after the surgery."""
    fewest_steps: Steps = MIN_STEPS
    """Minimum number of steps of a stage that has epochs, however little data there is."""
    most_steps: Annotated[int, Range(least=1, below=2**63)] = MAX_STEPS
    """Maximum number of steps of a stage."""
    learning_rate: OptionalRate = None
    """Peak learning rate of the weights and fine-tune stages; found by a range test by default.

    The test trains a copy of the model for 32 steps at rising rates, up to the method's highest, 0.05, and takes a
    quarter of the first rate at which training is unstable. A stage that then diverges, or ends with a much worse score
    than it began with, is repeated at a tenth of the rate. Both are noted in the result. A rate that you give is kept.
    """
    momentum: Annotated[float, Range(least=0, below=1)] = 0.9
    """Momentum of SGD in these stages."""
    weight_decay: Annotated[float, Range(least=0)] = 1e-4
    """Weight decay of SGD in these stages."""
    optimizer: OptimizerFactory | None = None
    """Function of the parameters that returns an optimizer with its own learning rate, used in place of SGD."""
    schedule: ScheduleName | Schedule = "cosine"
    """Learning-rate schedule of these stages: `cosine`, `linear`, `step`, `one-cycle`, `constant`, or a function.

    The function maps the fraction of the stage that is over, 0 to 1, to a factor of the learning rate."""
    warmup: Annotated[float, Range(least=0, below=1)] = 0.05
    """Fraction of a stage over which the learning rate rises from 0; `one-cycle` and functions have their own rise."""
    early_stopping: Annotated[int | None, Range(least=1, below=2**31)] = None
    """Validations without improvement after which these stages end, with their best weights; off by default."""
    gradient_clip: OptionalRate = 1.0
    """Maximum norm of all gradients together in these stages; `None` does not clip."""

    distillation_weight: Annotated[float, Range(least=0, most=1)] = 0.5
    """Weight of the distillation loss in fine-tuning with `teacher=`; that of the task's loss is the rest."""
    distillation_temperature: Annotated[float, Range(above=0)] = 2.0
    """Temperature of the class scores in fine-tuning with `teacher=`."""

    highest_rate: ClassVar[float] = 0.05
    """Upper bound of a learning rate that is found."""

    def __post_init__(self) -> None:
        if self.optimizer is not None and not callable(self.optimizer):
            raise SurgeryError(
                "optimizer must be a function of the parameters, such as fxsurgery.training.adamw(1e-3), "
                f"not a {type(self.optimizer).__name__}"
            )
        check_fields(self, SurgeryError, name="")
        if not isinstance(self.schedule, str):
            try:
                require_factors(self.schedule)
            except TrainingError as error:
                raise SurgeryError(str(error)).at("schedule") from error
        if self.optimizer is not None and self.learning_rate is not None:
            raise SurgeryError(
                f"{keyword('settings', 'learning_rate')} is for SGD, and the optimizer that was given has a learning "
                f"rate of its own; leave {keyword('settings', 'learning_rate')} out"
            ).at("learning_rate")

    @property
    def finds_rate(self) -> bool:
        """Whether the learning rate is left to a range test."""
        return self.learning_rate is None and self.optimizer is None

    @property
    def own_schedule(self) -> Schedule:
        """Schedule of the weights and fine-tune stages."""
        return schedule_of(self.schedule, self.warmup)

    def optimizer_at(self, rate: float | None) -> OptimizerFactory:
        """Return the user's optimizer, or else SGD at a learning rate; `None` is the highest that is admitted."""
        if self.optimizer is not None:
            return self.optimizer
        rate = rate or self.learning_rate or self.highest_rate
        return sgd(rate, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class Narrowing(Settings):
    """Settings of methods that make widths smaller."""

    align: Count = 8
    """Widths are rounded to multiples of this."""
    inner_only: bool = False
    """Leave residual streams at full width and prune only inside the branches."""
