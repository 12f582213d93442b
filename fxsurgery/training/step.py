"""One optimiser step: forward, backward, hooks, update."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from accelerate.utils.operations import convert_to_fp32
from torch import Tensor, nn
from torch.optim import Optimizer

from fxsurgery.argument_names import named
from fxsurgery.errors import DeviceError, DivergedError, TrainingError, reason_of
from fxsurgery.training.batch_stream import Portion
from fxsurgery.training.distributed import Sharing, rows_of
from fxsurgery.training.finite import wrong_values
from fxsurgery.training.invocation import loss_of, predict
from fxsurgery.training.recipe import Recipe
from fxsurgery.training.task import Task


@dataclass(frozen=True)
class StepInfo:
    """Where the training is, for hooks."""

    stage: str
    step: int
    """From 0."""
    steps: int
    epoch: int
    """From 0."""
    loss: float
    """The task's loss on this step's samples, without the penalty: the mean over its batches, of all processes."""
    learning_rate: float
    """Of the first parameter group."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a searcher adds to the loop. In a distributed run every process calls them alike."""

    penalty: Callable[[], Tensor] | None = None
    """A scalar added to the loss of each step, once; it sees the model before the step."""
    before_step: Callable[[StepInfo], None] | None = None
    """Runs after backward (and unscaling), before clipping and the optimiser's step; it may edit `.grad`.
    Not for a step that fp16's loss scaling skips because a gradient is not finite."""
    after_step: Callable[[StepInfo], None] | None = None
    """Runs after the optimiser's step."""
    state: Callable[[], Mapping[str, Any]] | None = None
    """What the hooks remember from step to step, as plain data, for snapshots."""
    restore: Callable[[Mapping[str, Any]], None] | None = None
    """Takes what `state` gave, its tensors on the CPU."""

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
    sharing: Sharing
    rates: list[float] = field(init=False)
    """The learning rate of each parameter group, before the schedule."""
    trained: list[nn.Parameter] = field(init=False)
    _taken: list[Portion] = field(init=False, default_factory=list)
    """The batches of the last step, to blame."""

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.trained = [p for group in self.optimizer.param_groups for p in group["params"]]

    @property
    def batches(self) -> int:
        """How many one step takes."""
        return int(self.accelerator.gradient_accumulation_steps)

    def step(self, number: int, portions: Iterable[Portion]) -> StepInfo:
        """Take one optimiser step on so many batches.

        Raises:
            DataError: one does not fit the model or the loss.
            DivergedError: the loss is not finite.
            TrainingError: it is not a scalar, or does not depend on what trains.
        """
        factor = self.recipe.schedule((number + 0.5) / self.recipe.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad()
        loss, penalty, epoch = self._gradients(portions)
        total, rate = loss + penalty, float(self.optimizer.param_groups[0]["lr"])
        info = StepInfo(self.stage, number, self.recipe.steps, epoch, loss, rate)
        if not math.isfinite(total):
            raise DivergedError(self._blamed(info, total))
        if all(p.grad is None for p in self.trained):
            raise TrainingError(
                f"{_where(info)}: the loss does not depend on any parameter that trains; "
                "keep the loss attached to the outputs, and check that forward uses the parameters"
            )
        self._update(info)
        self.sharing.agree(self.model.buffers())
        return info

    def _blamed(self, info: StepInfo, total: float) -> str:
        """What to tell of a loss that is not finite."""
        told = f"{_where(info)}: the loss is {total} at learning rate {info.learning_rate:.3g}"
        for portion in self._taken:
            if wrong := wrong_values(portion.batch):
                where = f"of {named('train_data')}, batch {portion.number} of epoch {portion.epoch}"
                return f"{told}, since {where}, {wrong}; clean the data"
        return (
            f"{told}; lower the learning rate, set gradient_clip=1.0 (of settings or Recipe), "
            "or look for a loss that is not finite on data that are"
        )

    def _gradients(self, portions: Iterable[Portion]) -> tuple[float, float, int]:
        """Leave the gradients of a step's batches; the loss, the penalty, and the epoch of the last batch."""
        figures, epoch = list[Tensor](), 0
        self._taken.clear()
        for number, portion in enumerate(portions, 1):
            epoch, loss = portion.epoch, self._loss(portion)
            penalty = loss.new_zeros(())
            if self.hooks.penalty is not None and number == self.batches:
                # The backward pass divides by the batches of a step, and each process has the whole penalty.
                penalty = self.hooks.penalty() * (self.batches / self.sharing.world)
            total = loss + penalty
            if total.requires_grad:
                self._backward(total)
            self._taken.append(portion)
            figures.append(torch.stack([loss.detach(), penalty.detach().to(loss.device)]))
        loss, penalty = (self.sharing.total(torch.stack(figures).sum(0)) / self.batches).tolist()
        return loss, penalty, epoch

    def _backward(self, total: Tensor) -> None:
        try:
            self.accelerator.backward(total)
        except torch.OutOfMemoryError as error:
            raise DeviceError("out of memory in the backward pass, use a smaller batch_size") from error
        except (RuntimeError, NotImplementedError) as error:
            told = next(iter(str(error).split(" Hint: ")[0].splitlines()), type(error).__name__)
            raise TrainingError(
                f"stage {self.stage!r}: the model cannot be trained, its backward pass fails: {told.rstrip('.')}. Does "
                "forward, or a hook, write in place into a tensor that the gradient needs? Write a new tensor instead"
            ) from error

    def _loss(self, portion: Portion) -> Tensor:
        """The loss on the rows that this process takes of a batch, as a part of the whole batch's."""
        inputs, target = self.task.take_apart(send_to_device(portion.batch, self.device))
        if portion.whole:
            inputs, target = rows_of(inputs, target, portion.share)
        with self.accelerator.autocast(), self.sharing.norms(portion.share):
            output = predict(self.model, inputs)
        loss = loss_of(self.task, convert_to_fp32(output) if self.accelerator.native_amp else output, target)
        counting = self.task.counting if self.sharing.world > 1 else None
        counted = None if counting is None else counting.loss_weight(target)
        return loss * self.sharing.part(portion.share, counted, loss.device)

    def _make_dense(self) -> None:
        """Sparse gradients, as `nn.Embedding(sparse=True)` gives, as what clipping and most optimizers take."""
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


def _where(info: StepInfo) -> str:
    return f"stage {info.stage!r}, step {info.step + 1} of {info.steps}"
