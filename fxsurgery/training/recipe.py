"""Training recipes: number of steps, optimizer and learning-rate schedule."""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

import torch
from torch import nn
from torch.optim import Optimizer

from fxsurgery.calls import checked_construction
from fxsurgery.errors import TrainingError, reason_of
from fxsurgery.option_types import Range, check_fields, checked
from fxsurgery.training.batches import count
from fxsurgery.training.random_state import repeatable
from fxsurgery.training.schedules import Schedule, constant
from fxsurgery.training.task import Task

OptimizerFactory: TypeAlias = Callable[[Iterable[nn.Parameter]], Optimizer]
MixedPrecision: TypeAlias = Literal["no", "bf16", "fp16"]
MemoryFormat: TypeAlias = Literal["contiguous", "channels_last"]
"""Memory format of the weights of 2-D and 3-D convolutions, which the feature maps between them follow."""
Accumulate: TypeAlias = Annotated[int, Range(least=1, below=2**31, said=": a step takes at least 1 batch")]
"""Batches of one optimizer step."""
MIN_STEPS = 200
"""Default lower bound on the optimizer steps of a stage."""
MAX_STEPS = 20_000
"""Default upper bound on the optimizer steps of a stage."""
_NotNegative: TypeAlias = Annotated[float, Range(least=0)]
_Rate: TypeAlias = Annotated[float, Range(least=0, infinite=True)]


@checked(TrainingError)
def sgd(
    lr: _Rate,
    *,
    momentum: _NotNegative = 0.9,
    weight_decay: _NotNegative = 0.0,
    nesterov: bool = False,
    decay_norms: bool = True,
) -> OptimizerFactory:
    """Stochastic gradient descent; without `decay_norms` biases and norms have no weight decay."""

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        groups = _groups(parameters, weight_decay, decay_norms=decay_norms)
        return torch.optim.SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)

    return make


@checked(TrainingError)
def adamw(
    lr: _NotNegative,
    *,
    weight_decay: _NotNegative = 1e-2,
    betas: tuple[float, float] = (0.9, 0.999),
    decay_norms: bool = False,
) -> OptimizerFactory:
    """AdamW; without `decay_norms` biases and norms have no weight decay."""

    def make(parameters: Iterable[nn.Parameter]) -> Optimizer:
        return torch.optim.AdamW(_groups(parameters, weight_decay, decay_norms=decay_norms), lr=lr, betas=betas)

    return make


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float, *, decay_norms: bool) -> list[dict[str, Any]]:
    everything = list(parameters)
    decayed = [p for p in everything if decay_norms or p.dim() > 1]
    spared = [p for p in everything if not decay_norms and p.dim() <= 1]
    groups = [(decayed, weight_decay), (spared, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A training recipe."""

    steps: Annotated[int, Range(below=2**63)]
    """Number of optimizer steps; `steps_for` converts epochs."""
    optimizer: OptimizerFactory
    """Function of the trainable parameters that returns their optimizer: `sgd(0.1)`, or a class such as
    `torch.optim.Adam`."""
    schedule: Schedule = field(default_factory=constant)
    gradient_clip: Annotated[
        float | None, Range(above=0, said=": it must be greater than 0; leave it out for no clipping")
    ] = None
    """Maximum norm of all gradients together."""
    accumulate: Accumulate = 1
    """Batches per optimizer step, which has the mean of their losses, like one large batch."""
    mixed_precision: MixedPrecision | None = None
    """Number format of the training; `None` is the one of `accelerate launch`, or none."""
    memory_format: MemoryFormat | None = None
    """Memory format of the weights of convolutions during training; `None` leaves it as it is. The result is equal
    up to rounding, and up to the entries of a feature map that a dropout between convolutions draws."""
    validations: int | tuple[int, ...] | None = None
    """Number of validation passes, spread evenly and one at the end; or the steps after which to validate, counted from
    1. `None` is once an epoch: with `early_stopping` always, else 5 times at most."""
    early_stopping: Annotated[int | None, Range(least=1, below=2**31)] = None
    """Validations without improvement after which the training ends, with the weights of the best one; `None` trains
    for all steps and keeps the last weights."""

    def __post_init__(self) -> None:
        check_fields(self, TrainingError)

    def optimizer_of(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """Return the optimizer of these parameters.

        Raises:
            TrainingError: `optimizer` makes none, or one whose steps take a closure.
        """
        try:
            made: object = self.optimizer(parameters)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TrainingError(
                f"Recipe.optimizer cannot make an optimizer of the parameters: {reason_of(error)}; give a function "
                "such as fxsurgery.training.adamw(1e-3)"
            ) from error
        if not isinstance(made, Optimizer):
            raise TrainingError(f"Recipe.optimizer must make a torch.optim.Optimizer; it made a {type(made).__name__}")
        closure = inspect.signature(made.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            raise TrainingError(
                f"{type(made).__name__} takes a closure that computes the loss; the loop has none; use one without, "
                "such as AdamW"
            )
        return made


@checked(TrainingError)
def steps_for(
    task: Task,
    epochs: float,
    *,
    accumulate: Accumulate = 1,
    max_steps: int | None = MAX_STEPS,
    min_steps: int = MIN_STEPS,
) -> int:
    """Return the number of optimizer steps of a number of epochs, within bounds.

    Four batches of data are repeated more often than asked for, a million of them less often. 0 epochs are 0 steps.
    Several processes share each batch, so they take as many steps as one process.

    Raises:
        DataError: there are no training batches.
    """
    if epochs <= 0:
        return 0
    with repeatable(task.train_data, 0, torch.device("cpu")) as source:
        batches = count(source, "train_data")
    steps = max(min_steps, math.ceil(epochs * batches / accumulate))
    return steps if max_steps is None else min(steps, max_steps)
