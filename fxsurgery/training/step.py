"""One optimizer step: forward, backward, hooks, update."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim import Optimizer

from fxsurgery.argument_names import entry, named
from fxsurgery.calls import checked_construction
from fxsurgery.errors import DeviceError, DivergedError, TrainingError, reason_of
from fxsurgery.training.batch_stream import Portion
from fxsurgery.training.device import on_device
from fxsurgery.training.distributed import BatchSharding, rows_of
from fxsurgery.training.finite import wrong_values
from fxsurgery.training.objective import TASK, Batch, Objective, evaluated, task_objective
from fxsurgery.training.recipe import Recipe
from fxsurgery.training.schedules import is_factor
from fxsurgery.training.task import Task


@dataclass(frozen=True)
class StepInfo:
    """Position of the training, for hooks."""

    stage: str
    step: int
    """From 0."""
    steps: int
    epoch: int
    """From 0."""
    loss: float
    """Loss on this step's samples: the term "task" if the objective names one, else the total. The mean over the
    batches of all processes."""
    learning_rate: float
    """Learning rate of the first parameter group."""
    terms: Mapping[str, float] = field(default_factory=dict)
    """The other terms that the objective names, as means likewise."""


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Additions of a searcher to the training loop. In a distributed run every process calls them alike."""

    objective: Objective = task_objective
    """Computes the loss of a batch; the task's loss on the model's output by default."""
    before_step: Callable[[StepInfo], None] | None = None
    """Called after backward (and unscaling), before clipping and the optimizer's step; it may edit `.grad`.
    Not called for a step that fp16's loss scaling skips because a gradient is not finite."""
    after_step: Callable[[StepInfo], None] | None = None
    """Called after the optimizer's step."""
    state: Callable[[], Mapping[str, Any]] | None = None
    """Returns the state of the hooks and the objective as plain data, for snapshots."""
    restore: Callable[[Mapping[str, Any]], None] | None = None
    """Restores a state that `state` returned, its tensors on the CPU."""

    def __post_init__(self) -> None:
        if (self.state is None) != (self.restore is None):
            raise TrainingError("hooks have one of state= and restore=: pass both or neither")


@dataclass
class Stepper:
    """Takes the steps of one training."""

    model: nn.Module
    task: Task
    recipe: Recipe
    stage: str
    hooks: Hooks
    accelerator: Accelerator
    optimizer: Optimizer
    device: torch.device
    sharing: BatchSharding
    rates: list[float] = field(init=False)
    """The learning rate of each parameter group, before the schedule."""
    trained: list[nn.Parameter] = field(init=False)
    batches: int = field(init=False)
    """Batches of one step."""
    _has_plain_zero_grad: bool = field(init=False)
    """Whether the optimizer clears gradients as PyTorch's do; other optimizers may clear more."""
    _taken: list[Portion] = field(init=False, default_factory=list)
    """The batches of the last step, for error messages."""

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.batches = int(self.accelerator.gradient_accumulation_steps)
        self._has_plain_zero_grad = type(self.optimizer).zero_grad is Optimizer.zero_grad

    def step(self, number: int, portions: Iterable[Portion]) -> StepInfo:
        """Take one optimizer step on some batches.

        Raises:
            DataError: one does not fit the model or the loss.
            DivergedError: the loss is not finite.
            TrainingError: it is not a scalar, or does not depend on what trains.
        """
        factor = self._factor((number + 0.5) / self.recipe.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self._forget_gradients()
        terms, epoch = self._gradients(number, portions)
        total, rate = terms.pop(""), float(self.optimizer.param_groups[0]["lr"])
        info = StepInfo(self.stage, number, self.recipe.steps, epoch, terms.pop(TASK, total), rate, terms)
        if not math.isfinite(total):
            raise self._diverged(info, total)
        if all(p.grad is None for p in self.trained):
            raise TrainingError(
                f"{_where(info)}: the loss does not depend on any parameter that trains; "
                "keep the loss attached to the outputs, and check that forward uses the parameters"
            )
        self._update(info)
        self.sharing.agree(self.model.buffers())
        return info

    def _factor(self, progress: float) -> float:
        """Return the factor of the learning rate at a fraction of the training."""
        factor = self.recipe.schedule(progress)
        if not is_factor(factor):
            raise TrainingError(
                f"stage {self.stage!r}: the schedule gives {factor!r} at {progress:.3g} of the training; it must give "
                "a finite number of at least 0"
            )
        return factor

    def _forget_gradients(self) -> None:
        if self._has_plain_zero_grad:
            for parameter in self.trained:
                parameter.grad = None
        else:
            self.optimizer.zero_grad()

    def _diverged(self, info: StepInfo, total: float) -> DivergedError:
        """Return the error for a loss that is not finite; it blames the data where they are at fault."""
        parts = ", ".join(f"{name}={value:.4g}" for name, value in info.terms.items())
        fact = f"{_where(info)}: the loss is {total} at learning rate {info.learning_rate:.3g}"
        fact = f"{fact} ({parts})" if parts else fact
        for portion in self._taken:
            if wrong := wrong_values(portion.batch):
                where = f"of {named('train_data')}, batch {portion.number} of epoch {portion.epoch}"
                return _hopeless(DivergedError(f"{fact}, since {where}, {wrong}; clean the data"))
        if info.step == 0:
            return _hopeless(
                DivergedError(
                    f"{fact}, before anything was trained; look for NaN or huge weights in the model, or for a loss "
                    "that is not finite on data that are"
                )
            )
        return DivergedError(
            f"{fact}; lower the learning rate, clip the gradients with {entry('settings', 'gradient_clip', 1.0)}, "
            "or look for a loss that is not finite on data that are"
        )

    def _gradients(self, number: int, portions: Iterable[Portion]) -> tuple[dict[str, float], int]:
        """Compute the gradients of a step's batches; return the loss, called "", its terms, and the epoch."""
        figures, epoch = list[dict[str, Tensor]](), 0
        self._taken.clear()
        for portion in portions:
            epoch, batch = portion.epoch, self._batch(number, portion)
            self._taken.append(portion)
            values = evaluated(self.hooks.objective, self.model, batch)
            figures.append({name: batch.weighted(value) for name, value in values.items()})
        return self._means(figures), epoch

    def _means(self, figures: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
        """Return the means over the batches of a step, and over the processes, by name."""
        names = list(figures[0])
        if len(figures) == len(names) == 1 and self.sharing.world == 1:
            return {names[0]: float(figures[0][names[0]].item())}
        if other := next((found.keys() ^ set(names) for found in figures if found.keys() != set(names)), None):
            raise TrainingError(
                f"stage {self.stage!r}: the objective gave the term {min(other)!r} for some batches of a step and not "
                "for others; return the same terms for each"
            )
        sums = reduce(add, [torch.stack([found[name] for name in names]) for found in figures])
        return dict(zip(names, (self.sharing.total(sums) / self.batches).tolist(), strict=True))

    def _batch(self, number: int, portion: Portion) -> Batch:
        """Return the rows that this process takes of a batch, as the objective sees them."""
        inputs, target = self.task.take_apart(on_device(portion.batch, self.device))
        if portion.whole:
            inputs, target = rows_of(inputs, target, portion.share)
        return Batch(
            inputs, target, number, self.recipe.steps, portion.epoch, self.stage, self.task, self.device,
            self.accelerator, self.sharing, portion.share,
        )  # fmt: skip

    def _make_dense(self) -> None:
        """Make sparse gradients dense, as of `nn.Embedding(sparse=True)`: clipping and most optimizers need that."""
        if isinstance(self.optimizer, torch.optim.SparseAdam):
            return
        for parameter in self.trained:
            if parameter.grad is not None and parameter.grad.layout is not torch.strided:
                parameter.grad = parameter.grad.to_dense()

    def _update(self, info: StepInfo) -> None:
        self._make_dense()
        self.sharing.sum_gradients(self.trained)
        scaler = self.accelerator.scaler
        if scaler is not None:
            scaler.unscale_(self.optimizer)
        if self.hooks.before_step is not None and (scaler is None or self._finite()):
            self.hooks.before_step(info)
        if self.recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.trained, self.recipe.gradient_clip)
        self._move(scaler)
        if self.hooks.after_step is not None:
            self.hooks.after_step(info)

    def _move(self, scaler: Any) -> None:  # noqa: ANN401 -- a GradScaler, or None
        try:
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)
                scaler.update()
        except torch.OutOfMemoryError as error:
            raise DeviceError("out of memory in the optimizer's step, use a smaller batch_size") from error
        except RuntimeError as error:
            kind = type(self.optimizer).__name__
            raise TrainingError(
                f"stage {self.stage!r}: the optimizer {kind} cannot take a step: {reason_of(error)}; use another "
                "optimizer"
            ) from error

    def _finite(self) -> bool:
        return all(bool(p.grad.isfinite().all()) for p in self.trained if p.grad is not None)


def _hopeless(error: DivergedError) -> DivergedError:
    """Mark an error that no other learning rate avoids."""
    error.retriable = False
    return error


def _where(info: StepInfo) -> str:
    return f"stage {info.stage!r}, step {info.step + 1} of {info.steps}"
