"""Objectives: how a batch becomes a loss, which a searcher may replace.

    objective(model, batch) -> (loss, terms)

For a step of B batches, of whose N rows process r takes n_r, and L the loss that the objective returns, the gradient is

    dL/dw = 1/B * sum over batches and processes of (n_r / N) * dL_{b,r}/dw

So L must be a mean over the rows of `batch`, plus terms that depend on no row (a penalty): then many small batches, or
many processes, learn what one process learns on one large batch. An objective may act before the forward pass, and may
call `Batch.backward` several times: the gradients of a step are summed with the same scale.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, TypeAlias

import torch
from accelerate import Accelerator
from accelerate.utils.operations import convert_to_fp32
from torch import Tensor, nn

from fxsurgery.errors import DeviceError, TrainingError
from fxsurgery.inputs import Inputs
from fxsurgery.training.distributed import BatchSharding, Shard
from fxsurgery.training.invocation import loss_of, predict
from fxsurgery.training.task import Task

TASK = "task"
"""Name of the term that is reported as the loss, so that stages with different terms can be compared."""
Terms: TypeAlias = Mapping[str, Tensor | float]
"""Parts of a loss by name, scalars, for progress and errors; they are not differentiated by themselves."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of a training batch that this process takes, on the device of the model."""

    inputs: Inputs
    """Inputs of the model."""
    target: Any
    """Target, as `Task.split` returns it."""
    step: int
    """Index of the optimizer step, from 0; all batches of a step and all processes share it."""
    steps: int
    """Total number of optimizer steps."""
    epoch: int
    """Index of the epoch, from 0."""
    stage: str
    """Name of the stage."""
    task: Task
    device: torch.device
    accelerator: Accelerator
    sharing: BatchSharding
    share: Shard
    """The part of the whole batch that these rows are."""

    def predict(self, model: nn.Module, *, keep: bool = True) -> Any:  # noqa: ANN401
        """Return the output of a module on the inputs, in float32: of the trained model, a view with taps, a teacher.

        Args:
            model: the module, on `device`.
            keep: pass a copy of the inputs, so that a module that writes into them does not affect the next call.

        Raises:
            DataError: the module does not accept the inputs.
            DeviceError: out of memory.
        """
        inputs = self.inputs.clone() if keep else self.inputs
        if not self.accelerator.native_amp and self.sharing.world == 1:
            return predict(model, inputs)
        with self.precision():
            output = predict(model, inputs)
        return convert_to_fp32(output) if self.accelerator.native_amp else output

    def loss(self, output: Any) -> Tensor:  # noqa: ANN401
        """Return the task's loss of an output: a scalar, the mean over the rows or over the targets that count.

        Raises:
            DataError: the loss does not accept the output and the target.
            TrainingError: the loss does not return scalars.
        """
        loss = loss_of(self.task, output, self.target)
        counting = self.task.counting if self.sharing.world > 1 else None
        if counting is None:
            return loss
        part = self.sharing.part(self.share, counting.loss_weight(self.target), loss.device)
        return loss * (part / self.share.weight if self.share.weight else 0.0)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a scalar loss to those of the step, and free its graph.

        The loop differentiates the loss that the objective returns. Call this for each further loss.

        Raises:
            DeviceError: out of memory.
            TrainingError: the graph cannot be differentiated.
        """
        batches, scaler = self.accelerator.gradient_accumulation_steps, self.accelerator.scaler
        part = self.weighted(loss)
        part = part if batches == 1 else part / batches  # as `Accelerator.backward`, which divides by 1 as well
        try:
            (part if scaler is None else scaler.scale(part)).backward()
        except torch.OutOfMemoryError as error:
            raise DeviceError("out of memory in the backward pass, use a smaller batch_size") from error
        except (RuntimeError, NotImplementedError) as error:
            told = next(iter(str(error).split(" Hint: ")[0].splitlines()), type(error).__name__)
            raise TrainingError(
                f"stage {self.stage!r}: the model cannot be trained, its backward pass fails: {told.rstrip('.')}. Does "
                "forward, or a hook, write in place into a tensor that the gradient needs? Write a new tensor instead"
            ) from error

    @contextmanager
    def precision(self) -> Iterator[None]:
        """Run forward passes in the precision of the training, batch norms over the rows of all processes."""
        with self.accelerator.autocast(), self.sharing.norms(self.share):
            yield

    def copy(self) -> Self:
        """Return the batch with a copy of its inputs."""
        return replace(self, inputs=self.inputs.clone())

    def weighted(self, value: Tensor) -> Tensor:
        """Return the contribution of a mean over these rows to the mean over the rows of all processes."""
        return value if self.sharing.world == 1 else value * self.share.weight


class Objective(Protocol):
    """Turns a batch into a loss. In a distributed run every process makes the same calls in the same order.

    Random numbers must follow from a seed and `Batch.step`, so that a resumed training and all batches of a step draw
    the same. State from step to step belongs in `Hooks.state`.

    Example:
        >>> def with_decay(model, batch):
        ...     loss = batch.loss(batch.predict(model))
        ...     decay = 1e-3 * sum(p.abs().sum() for p in model.parameters())
        ...     return loss + decay, {"task": loss, "decay": decay}
    """

    def __call__(self, model: nn.Module, batch: Batch, /) -> tuple[Tensor, Terms]:
        """Return the loss, a scalar, and its parts by name.

        A loss that requires a gradient is differentiated; any other is only reported.
        """


def task_objective(model: nn.Module, batch: Batch) -> tuple[Tensor, Terms]:
    """Return the task's loss on the model's output: the default objective."""
    return batch.loss(batch.predict(model, keep=False)), {}


def evaluated(objective: Objective, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Run an objective and differentiate the loss that it returns.

    Returns:
        The loss, named "", and the terms by their names: detached scalars of one dtype and device.

    Raises:
        TrainingError: the objective does not return a scalar tensor and its terms.
    """
    given: object = objective(model, batch)
    if not isinstance(given, tuple) or len(given) != 2 or not isinstance(given[1], Mapping):
        raise _misfit(batch, f"a {type(given).__name__}")
    loss, terms = given
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise _misfit(batch, f"as loss a {type(loss).__name__} {tuple(getattr(loss, 'shape', ()))}")
    scalar = loss.reshape(()) if loss.dim() else loss
    if loss.requires_grad:
        batch.backward(scalar)
    found = {"": scalar.detach()}
    for name, term in terms.items():
        if not isinstance(term, Tensor | int | float) or (isinstance(term, Tensor) and term.numel() != 1) or not name:
            raise _misfit(batch, f"as term {name!r} a {type(term).__name__} {tuple(getattr(term, 'shape', ()))}")
        found[name] = torch.as_tensor(term).detach().to(loss.device, loss.dtype).reshape(())
    return found


def _misfit(batch: Batch, given: str) -> TrainingError:
    return TrainingError(
        f"stage {batch.stage!r}: the objective must give (loss, terms), a scalar tensor and a dict of scalars by "
        f"name; it gave {given}"
    )
