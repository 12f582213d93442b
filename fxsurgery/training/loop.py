"""The one training loop. It runs on Accelerate: CPU, CUDA, mixed precision, several processes."""

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from fxsurgery.errors import DataError, DeviceError, TrainingError
from fxsurgery.training.progress import Progress
from fxsurgery.training.recipe import Recipe
from fxsurgery.training.task import Batches, Task, set_epoch


@dataclass(frozen=True)
class StepInfo:
    """Where the loop stands: `step` of `steps`, from 0."""

    step: int
    steps: int
    epoch: int
    loss: float


@dataclass(frozen=True)
class Hooks:
    """What a searcher adds to the loop."""

    penalty: Callable[[], Tensor] | None = None
    """Added to the task's loss."""
    before_step: Callable[[StepInfo], None] | None = None
    """Called between backward and the optimiser's step; may change gradients."""
    after_step: Callable[[StepInfo], None] | None = None


@dataclass(frozen=True)
class Settings:
    """What all stages of one run share."""

    seed: int = 0
    device: str | None = None
    """`"cpu"` or `"cuda"`; where the model is unless said."""
    mixed_precision: str = "no"
    """`"no"`, `"bf16"` or `"fp16"`, as Accelerate takes it."""
    progress: Progress = field(default_factory=Progress.quiet)


def fit(
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    settings: Settings,
    *,
    stage: str = "train",
    parameters: Iterable[nn.Parameter] | None = None,
    hooks: Hooks | None = None,
) -> float:
    """Train `model`, in place, and leave it in eval mode.

    Args:
        model: what trains; never the user's own object but a copy.
        task: data and loss.
        recipe: steps, optimiser and schedule.
        settings: seed, device, precision, progress.
        stage: its name, for reports and errors.
        parameters: these alone move, every other is frozen for the duration; all that require a gradient
            unless given.
        hooks: what to do besides.

    Returns:
        The mean loss of the last epoch.

    Raises:
        DataError: a batch does not fit the model or the loss.
        TrainingError: the loss is not a finite scalar that depends on the weights.
        DeviceError: the device is not there.
    """
    accelerator = _accelerator(model, settings)
    chosen = list(parameters) if parameters is not None else [p for p in model.parameters() if p.requires_grad]
    if not chosen:
        raise TrainingError(f"{stage}: no parameter is to be trained; all have requires_grad=False")
    with _seeded(settings.seed), _frozen_but(model, chosen), _flushing_denormals():
        model.to(accelerator.device)
        optimizer = recipe.optimizer(chosen)
        run = _Run(accelerator, model, optimizer, task, recipe, stage, hooks or Hooks(), settings.progress)
        loss = run.train()
    return loss


class _Run:
    """One call of `fit`."""

    def __init__(  # noqa: PLR0913, PLR0917 -- private, called once
        self,
        accelerator: Accelerator,
        model: nn.Module,
        optimizer: Optimizer,
        task: Task,
        recipe: Recipe,
        stage: str,
        hooks: Hooks,
        progress: Progress,
    ) -> None:
        self.plain, self.task, self.recipe, self.stage = model, task, recipe, stage
        self.hooks, self.progress, self.accelerator = hooks, progress, accelerator
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        data = task.train_data
        self.batches: Batches = accelerator.prepare(data) if isinstance(data, DataLoader) else data

    def train(self) -> float:
        self.plain.train()
        self.progress.begin(self.stage, self.recipe.steps)
        step, epoch, mean = 0, 0, math.nan
        try:
            while step < self.recipe.steps:
                set_epoch(self.task.train_data, epoch)
                losses = list[float]()
                for batch in self.batches:
                    losses.append(self._step(batch, step, epoch))
                    step += 1
                    self.progress.step(step, epoch + 1, losses[-1])
                    if step == self.recipe.steps:
                        break
                if not losses:
                    raise DataError(f"{self.stage}: the training data gave no batch in epoch {epoch + 1}")
                epoch, mean = epoch + 1, sum(losses) / len(losses)
                self.progress.epoch(epoch, step, mean, self.optimizer.param_groups[0]["lr"])
        finally:
            self.progress.end(mean)
            self.optimizer.zero_grad(set_to_none=True)
            self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
            self.plain.eval()
        return mean

    def _step(self, batch: object, step: int, epoch: int) -> float:
        scale = self.recipe.schedule(step / max(self.recipe.steps, 1))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * scale
        loss = self._loss(batch)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.stage}: the loss is {value} at step {step + 1} (learning rate {self.rates[0] * scale:.3g}); "
                "lower the learning rate, or look for such values in the data"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        info = StepInfo(step, self.recipe.steps, epoch, value)
        if self.hooks.before_step:
            self.hooks.before_step(info)
        if self.recipe.gradient_clip is not None:
            self.accelerator.clip_grad_norm_(self.plain.parameters(), self.recipe.gradient_clip)
        self.optimizer.step()
        if self.hooks.after_step:
            self.hooks.after_step(info)
        return value

    def _loss(self, batch: object) -> Tensor:
        inputs, target = self.task.split(send_to_device(batch, self.accelerator.device))
        output = forward(self.model, inputs)
        with self.accelerator.autocast():
            loss = loss_of(self.task, output, target)
            if self.hooks.penalty is not None:
                loss = loss + self.hooks.penalty()
        if not loss.requires_grad:
            raise TrainingError(f"{self.stage}: the loss does not depend on any parameter that trains")
        return loss


def forward(model: nn.Module, inputs: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """The model's output.

    Raises:
        DataError: the inputs do not fit the model.
    """
    try:
        return model(*inputs)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise DataError(f"the model cannot take a batch with inputs {shapes(inputs)}: {error}") from error


def loss_of(task: Task, output: Any, target: Any) -> Tensor:  # noqa: ANN401
    """The task's loss, a scalar.

    Raises:
        DataError: output and target do not fit the loss.
        TrainingError: the loss is not a scalar tensor.
    """
    try:
        loss = task.loss(output, target)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError, KeyError) as error:
        raise DataError(
            f"the loss cannot take output {shapes(output)} with target {shapes(target)}: {error}"
        ) from error
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise TrainingError(f"a loss is a scalar tensor, but this one is {shapes(loss)}")
    return loss


def shapes(value: object) -> str:
    """The shapes of a nested value, for messages."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"({', '.join(map(shapes, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{k}: {shapes(v)}' for k, v in value.items())}}}"
    return type(value).__name__


def device_of(model: nn.Module, asked: str | None) -> torch.device:
    """The device that was asked for, or where the model is.

    Raises:
        DeviceError: the device is unknown, or not on this machine.
    """
    if asked is None:
        return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise DeviceError(f"there is no device {asked!r}: say 'cpu' or 'cuda'") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(f"device {asked!r} was asked for, but this machine has no usable CUDA GPU; use 'cpu'")
    return device


def _accelerator(model: nn.Module, settings: Settings) -> Accelerator:
    device = device_of(model, settings.device)
    if AcceleratorState._shared_state:  # noqa: SLF001 -- a process keeps its first settings otherwise
        AcceleratorState._reset_state(reset_partial_state=True)  # noqa: SLF001
    return Accelerator(cpu=device.type == "cpu", mixed_precision=settings.mixed_precision)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed inside, and leave the user's random state as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def _frozen_but(model: nn.Module, chosen: list[nn.Parameter]) -> Iterator[None]:
    moving = {id(p) for p in chosen}
    before = [(p, p.requires_grad) for p in model.parameters()]
    for parameter, _ in before:
        parameter.requires_grad_(id(parameter) in moving)
    try:
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)


@contextlib.contextmanager
def _flushing_denormals() -> Iterator[None]:
    """Denormals make pruned weights up to ten times slower on a CPU."""
    probe = torch.tensor([1e-39])
    was_on = float(probe * 1.0) == 0.0
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(was_on)
