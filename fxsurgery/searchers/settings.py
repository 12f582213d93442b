"""The settings that methods share."""

import math
from dataclasses import dataclass, fields

from typing_extensions import override

from fxsurgery.errors import SurgeryError
from fxsurgery.training import MAX_STEPS, MIN_STEPS, OptimizerFactory, sgd


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What all methods have in common. The defaults fit a conv net with batch norm on some thousands of images.

    Epochs are turned into steps with bounds, so that four batches of data are seen often enough and a million of
    them are not run through for days: see `fxsurgery.training.steps_for`.

    Raises:
        SurgeryError: a setting has no meaning.
    """

    weights_epochs: float = 20
    """Of a network that is not trained yet."""
    finetune_epochs: float = 15
    """After the surgery."""
    fewest_steps: int = MIN_STEPS
    """No stage that has epochs is shorter, however little data there is."""
    most_steps: int = MAX_STEPS
    """No stage is longer."""
    learning_rate: float = 0.05
    """The peak of the weights stage and of the fine-tune stage."""
    momentum: float = 0.9
    """Of SGD in these stages."""
    weight_decay: float = 1e-4
    """Of SGD in these stages."""
    optimizer: OptimizerFactory | None = None
    """Takes parameters; used for the weights and fine-tune stages instead of SGD."""
    gradient_clip: float | None = None
    """Largest norm of all gradients together in these stages; unless said 1 without data, where an output holds other
    values than class scores, else none."""

    def __post_init__(self) -> None:
        at_least = {"most_steps": 1, "fewest_steps": 0, "weight_decay": 0}
        at_least |= {f.name: 0 for f in fields(self) if f.name.endswith("_epochs")}
        if not 0 <= self.momentum < 1:
            raise SurgeryError(f"momentum={self.momentum!r}: it must be at least 0 and less than 1")
        for name, least in at_least.items():
            if not math.inf > getattr(self, name) >= least:
                raise SurgeryError(f"{name}={getattr(self, name)!r}: it must be at least {least}")
        if not self.learning_rate > 0:
            raise SurgeryError(f"learning_rate={self.learning_rate!r}: it must be greater than 0")
        if self.gradient_clip is not None and not self.gradient_clip > 0:
            raise SurgeryError(f"gradient_clip={self.gradient_clip!r}: it must be greater than 0")
        if not callable(self.optimizer or sgd):
            raise SurgeryError(
                "optimizer must be a function of the parameters, such as fxsurgery.training.adamw(1e-3), "
                f"not a {type(self.optimizer).__name__}"
            )

    @property
    def own_optimizer(self) -> OptimizerFactory:
        """The one that was given, or SGD."""
        return self.optimizer or sgd(self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(frozen=True, kw_only=True)
class Narrowing(Settings):
    """What methods that make widths smaller have in common."""

    align: int = 8
    """Widths are multiples of this."""
    inner_only: bool = False
    """Leave residual streams at full width and prune inside the branches alone."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.align >= 1:
            raise SurgeryError(f"align={self.align!r}: it must be at least 1")
