"""The training loop: every stage of every search, and every fine-tune, runs here.

It runs on Accelerate: CPU or CUDA, mixed precision, several processes under `accelerate launch` or
`torchrun`. All that it draws at random comes from its seed and the epoch, and whatever it borrows from the
process (random states, float modes, Accelerate's state) it gives back, so on a CPU the same seed gives the
same weights bit for bit, whatever ran before.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count as count_up
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import broadcast, send_to_device
from torch import Tensor, nn

from fxsurgery.errors import TrainingError
from fxsurgery.seeding import flushed_denormals, mix, reseed, seeded
from fxsurgery.training.batches import Drawn, Loader, epoch_of, samples, set_epoch
from fxsurgery.training.borrowing import borrowed, prepared, training_only
from fxsurgery.training.calls import loss_of, predict
from fxsurgery.training.device import Device, accelerated, processes
from fxsurgery.training.evaluate import Score, evaluate
from fxsurgery.training.progress import Progress, Standing
from fxsurgery.training.recipe import Recipe
from fxsurgery.training.task import Task

RECORDS = 50


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
    """The task's loss on this step's batch, without the penalty."""
    learning_rate: float
    """Of the first parameter group."""


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What a searcher adds to the loop."""

    penalty: Callable[[], Tensor] | None = None
    """A scalar added to the loss of each step; it sees the model before the step."""
    before_step: Callable[[StepInfo], None] | None = None
    """Runs after backward (and unscaling), before clipping and the optimiser's step; it may edit `.grad`."""
    after_step: Callable[[StepInfo], None] | None = None
    """Runs after the optimiser's step."""


@dataclass(frozen=True)
class FitReport:
    """What a training came to."""

    stage: str
    steps: int
    epochs: int
    """Epochs begun."""
    samples: int
    """Training samples gone through, in this process."""
    loss: float
    """Mean of the task's loss over the last steps; NaN without a step."""
    score: Score | None
    """The last validation score, taken at the end; `None` if there was none."""
    seconds: float


def fit(  # noqa: PLR0913 -- each by name; what searchers add is grouped in `Hooks`
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    seed: int = 0,
    stage: str = "training",
    parameters: Iterable[nn.Parameter] | None = None,
    hooks: Hooks | None = None,
    progress: Progress | None = None,
    device: Device | Accelerator = None,
) -> FitReport:
    """Train `model` in place, in train mode; then it is back on its device with its train flags.

    Args:
        model: ours to train, such as `Program.trainable_copy()`.
        task: what is to be learned.
        recipe: how.
        seed: the same seed, data and machine give the same weights.
        stage: what reports and messages call this training.
        parameters: only these train; all others are frozen meanwhile. `None` is all that require gradients.
        hooks: what a searcher adds.
        progress: where this is reported; nowhere unless said.
        device: a name, a device, or an `Accelerator` of yours; `None` is the GPU where there is one.

    Raises:
        DataError: there is no batch, or one does not fit the model or the loss.
        DeviceError: the device is not there, is out of memory, or cannot do the precision asked for.
        TrainingError: the loss is not finite, not a scalar, or does not depend on what trains.
    """
    progress = progress or Progress.quiet()
    if recipe.steps < 1:
        return FitReport(stage, 0, 0, 0, math.nan, None, 0.0)
    with (
        accelerated(device, recipe.mixed_precision) as (accelerator, there),
        seeded(seed, there),
        flushed_denormals(),
        borrowed(model, there),
        training_only(model, parameters) as chosen,
        prepared(model, recipe, chosen, accelerator) as (wrapped, optimizer),
        progress.stage(stage, recipe.steps, task.metric_name),
    ):
        run = _Run(model, wrapped, task, recipe, stage, hooks or Hooks(), accelerator, optimizer, there)
        return _train(run, progress, seed)


@dataclass
class _Run:
    """What the steps of one training share."""

    model: nn.Module
    wrapped: nn.Module
    """The model as Accelerate runs it."""
    task: Task
    recipe: Recipe
    stage: str
    hooks: Hooks
    accelerator: Accelerator
    optimizer: AcceleratedOptimizer
    device: torch.device
    rates: list[float] = field(init=False)
    """The learning rate of each parameter group, before the schedule."""
    clipped: list[nn.Parameter] = field(init=False)

    def __post_init__(self) -> None:
        self.rates = [group["lr"] for group in self.optimizer.param_groups]
        self.clipped = [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self, number: int, drawn: Drawn) -> StepInfo:
        """Take one optimiser step on a batch."""
        factor = self.recipe.schedule((number + 0.5) / self.recipe.steps)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        self.optimizer.zero_grad()
        inputs, target = self.task.take_apart(send_to_device(drawn.batch, self.device))
        loss = loss_of(self.task, predict(self.wrapped, inputs), target)
        total = loss if self.hooks.penalty is None else loss + self.hooks.penalty()
        rate = float(self.optimizer.param_groups[0]["lr"])
        info = StepInfo(self.stage, number, self.recipe.steps, drawn.epoch, loss.item(), rate)
        _check(total, info)
        self.accelerator.backward(total)
        self._update(info)
        return info

    def _update(self, info: StepInfo) -> None:
        self.accelerator.unscale_gradients(self.optimizer)
        if self.hooks.before_step is not None:
            self.hooks.before_step(info)
        if self.recipe.gradient_clip is not None:
            nn.utils.clip_grad_norm_(self.clipped, self.recipe.gradient_clip)
        self.optimizer.step()
        if self.hooks.after_step is not None:
            self.hooks.after_step(info)


def _check(total: Tensor, info: StepInfo) -> None:
    where = f"stage {info.stage!r}, step {info.step + 1} of {info.steps}"
    value = total.item()
    if not math.isfinite(value):
        raise TrainingError(
            f"{where}: the loss is {value} at learning rate {info.learning_rate:.3g}; lower the learning rate, "
            "set Recipe(gradient_clip=1.0), or look for values in the data that are not finite"
        )
    if not total.requires_grad:
        raise TrainingError(
            f"{where}: the loss does not depend on any parameter that trains; "
            "does the loss detach it, or are the parameters unused?"
        )


def _train(run: _Run, progress: Progress, seed: int) -> FitReport:
    steps, start = run.recipe.steps, time.monotonic()
    records, validations = _points(steps, RECORDS), _points(steps, _validations(run))
    pending = list[float]()
    score, seen, last = None, 0, None
    for number, drawn in enumerate(islice(_batches(run, seed), steps)):
        info = run.step(number, drawn)
        pending.append(info.loss)
        seen += samples(drawn.batch)
        looked = evaluate(run.model, run.task) if number + 1 in validations else None
        score = looked or score
        last = _standing(info, pending, looked, time.monotonic() - start)
        progress.show(last)
        if looked or number + 1 in records:
            progress.record(last)
            pending.clear()
    if run.accelerator.num_processes > 1:
        _agree(run.model)
    epochs, loss = (0, math.nan) if last is None else (last.epoch + 1, last.loss)
    return FitReport(run.stage, steps, epochs, seen, loss, score, time.monotonic() - start)


def _agree(model: nn.Module) -> None:
    """Give every process the first one's buffers: each has gathered the norm statistics of its own batches."""
    for buffer in model.buffers():
        buffer.copy_(broadcast(buffer))


def _standing(info: StepInfo, losses: list[float], score: Score | None, seconds: float) -> Standing:
    return Standing(
        stage=info.stage,
        epoch=info.epoch,
        step=info.step + 1,
        steps=info.steps,
        loss=sum(losses) / len(losses),
        metric=None if score is None else score.metric,
        lr=info.learning_rate,
        seconds=seconds,
    )


def _points(steps: int, many: int) -> set[int]:
    """So many step counts spread evenly, the last one at the end."""
    return {-(-steps * i // many) for i in range(1, many + 1)}


def _validations(run: _Run) -> int:
    if run.recipe.validations is not None:
        return run.recipe.validations
    try:
        return min(5, run.recipe.steps * processes() // max(len(run.task.train_data), 1))
    except TypeError:
        return 1


def _batches(run: _Run, seed: int) -> Iterator[Drawn]:
    """Training batches without end; each epoch's randomness follows from seed and epoch alone."""
    source = run.task.train_data
    loader: Loader = source
    if run.accelerator.num_processes > 1:
        loader = run.accelerator.prepare_data_loader(source, device_placement=False)
    with _kept_generators(source) as generators:
        for epoch in count_up():
            fresh = mix(seed, epoch)
            reseed(fresh, run.device)
            for generator in generators:
                generator.manual_seed(fresh)
            set_epoch(source, epoch)  # a loader that Accelerate has prepared hides the sampler
            yield from epoch_of(loader, epoch, "train_data")


@contextmanager
def _kept_generators(loader: Loader) -> Iterator[list[torch.Generator]]:
    """The generators that a user's loader brings; their states are put back."""
    found = [loader.generator, getattr(loader.sampler, "generator", None)]
    generators = [g for g in found if isinstance(g, torch.Generator)]
    states = [g.get_state() for g in generators]
    try:
        yield generators
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
