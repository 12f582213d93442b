"""The settings that methods share."""

from dataclasses import dataclass
from typing import Annotated, TypeAlias

from fxsurgery.errors import SurgeryError
from fxsurgery.option_types import Count, Range, check_fields
from fxsurgery.training import MAX_STEPS, MIN_STEPS, OptimizerFactory, sgd

Epochs: TypeAlias = Annotated[float, Range(least=0, below=10**18)]
"""Passes over the training data; 0 leaves the stage out."""
Steps: TypeAlias = Annotated[int, Range(least=0, below=2**63)]
Rate: TypeAlias = Annotated[float, Range(above=0)]
OptionalRate: TypeAlias = Annotated[float | None, Range(above=0)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all methods have in common. The defaults fit a conv net with batch norm on some thousands of images.

    Epochs are turned into steps with bounds, so that four batches of data are seen often enough and a million of
    them are not run through for days: see `fxsurgery.training.steps_for`.

    Raises:
        SurgeryError: a setting has no meaning.
    """

    weights_epochs: Epochs = 20
    """Of a network that is not trained yet."""
    finetune_epochs: Epochs = 15
    """After the surgery."""
    fewest_steps: Steps = MIN_STEPS
    """No stage that has epochs is shorter, however little data there is."""
    most_steps: Annotated[int, Range(least=1, below=2**63)] = MAX_STEPS
    """No stage is longer."""
    learning_rate: Rate = 0.05
    """The peak of the weights stage and of the fine-tune stage."""
    momentum: Annotated[float, Range(least=0, below=1)] = 0.9
    """Of SGD in these stages."""
    weight_decay: Annotated[float, Range(least=0)] = 1e-4
    """Of SGD in these stages."""
    optimizer: OptimizerFactory | None = None
    """Takes parameters; used for the weights and fine-tune stages instead of SGD."""
    gradient_clip: OptionalRate = None
    """Largest norm of all gradients together in these stages; unless said 1 without data, where an output holds other
    values than class scores, else none."""

    def __post_init__(self) -> None:
        if self.optimizer is not None and not callable(self.optimizer):
            raise SurgeryError(
                "optimizer must be a function of the parameters, such as fxsurgery.training.adamw(1e-3), "
                f"not a {type(self.optimizer).__name__}"
            )
        check_fields(self, SurgeryError, name="")

    @property
    def own_optimizer(self) -> OptimizerFactory:
        """The one that was given, or SGD."""
        return self.optimizer or sgd(self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class Narrowing(Settings):
    """What methods that make widths smaller have in common."""

    align: Count = 8
    """Widths are multiples of this."""
    inner_only: bool = False
    """Leave residual streams at full width and prune inside the branches alone."""
