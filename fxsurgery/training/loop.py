"""The training loop: every stage of every search, and every fine-tune, runs here.

It runs on Accelerate: CPU or CUDA, mixed precision, several processes under `accelerate launch` or
`torchrun`, which share each batch and learn what one would. All that it draws at random comes from its seed and
the epoch, and whatever it borrows from the process (random states, float modes, Accelerate's state) it gives back,
so on a CPU the same seed gives the same weights bit for bit, whatever ran before; and so does a training that was
cut off and goes on from a snapshot.
"""

import math
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

from accelerate import Accelerator
from torch import nn

from fxsurgery.argument_names import entry
from fxsurgery.errors import DivergedError, TrainingError
from fxsurgery.option_types import Seed, checked
from fxsurgery.seeding import mix, reseed
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training.batch_stream import Stream
from fxsurgery.training.device import Device
from fxsurgery.training.distributed import BatchSharding
from fxsurgery.training.evaluate import Score, evaluate
from fxsurgery.training.finite import not_finite
from fxsurgery.training.progress import Progress, TrainingProgress
from fxsurgery.training.random_state import random_states, set_random_states
from fxsurgery.training.recipe import Recipe
from fxsurgery.training.set_up import own_seed, set_up
from fxsurgery.training.snapshot import (
    FORMAT,
    Checkpointer,
    check_readable,
    check_same,
    plain,
    put_back,
    restore_optimizer,
    restoring,
    tensors_of,
)
from fxsurgery.training.snapshot_schema import require_snapshot
from fxsurgery.training.step import Hooks, StepInfo, Stepper
from fxsurgery.training.task import Task
from fxsurgery.turns import TURNS

RECORDS = 50


@dataclass(frozen=True)
class FitReport:
    """What a training came to."""

    stage: str
    steps: int
    epochs: int
    """Epochs begun."""
    samples: int
    """Training samples gone through, in all processes together."""
    loss: float
    """Mean of the loss, as `StepInfo.loss` has it, over the last steps; NaN without a step."""
    score: Score | None
    """The last validation score, taken at the end; `None` if there was none."""
    seconds: float


@checked(TrainingError)
@plain_surroundings()
def fit(  # noqa: PLR0913 -- each by name; what searchers add is grouped in `Hooks`
    model: nn.Module,
    task: Task,
    recipe: Recipe,
    *,
    seed: Seed = 0,
    stage: str = "training",
    parameters: Iterable[nn.Parameter] | None = None,
    hooks: Hooks | None = None,
    progress: Progress | None = None,
    device: Device | Accelerator = None,
    keeper: Checkpointer | None = None,
) -> FitReport:
    """Train `model` in place, in train mode; then it is back on its device with its train flags.

    Under several processes each takes its rows of every batch: see `fxsurgery.training.distributed`. A loss that is no
    mean over the rows, but over tokens or pairs of them, is then a little another, and each process draws its own
    dropout. Validation is in full precision, whatever the training is in.

    Args:
        model: ours to train, such as `Program.trainable_copy()`.
        task: what is to be learned.
        recipe: how.
        seed: the same seed, data and machine give the same weights.
        stage: what reports and messages call this training.
        parameters: only these train; all others are frozen meanwhile. `None` is all that require gradients.
        hooks: what a searcher adds.
        progress: where this is reported; nowhere unless said.
        device: a name, a device, or an `Accelerator` of yours; `None` is the GPU where there is one. Yours
            may accumulate gradients, as `Recipe.accumulate` says.
        keeper: keeps snapshots. Where it has one, the training goes on from it, to the same end bit for bit in as
            many processes; in another number of them, up to rounding and dropout.

    Raises:
        DataError: there is no batch, or one does not fit the model or the loss.
        DeviceError: the device is not there, is out of memory, or cannot do the precision asked for.
        DivergedError: the loss or a weight is not finite.
        TrainingError: the loss is not a scalar, or does not depend on what trains; the snapshot is of another
            training, or the optimizer or the hooks hold what no snapshot can.
    """
    progress = progress or Progress.quiet()
    if recipe.steps < 1:
        return FitReport(stage, 0, 0, 0, math.nan, None, 0.0)
    with (
        set_up(model, recipe, seed, parameters, device) as (accelerator, there, chosen),
        progress.stage(stage, recipe.steps, task.metric_name),
    ):
        sharing = BatchSharding(accelerator.process_index, accelerator.num_processes)
        sharing.agree(chain(model.parameters(), model.buffers()))
        stepper = Stepper(
            model, task, recipe, stage, hooks or Hooks(), accelerator, recipe.optimizer_of(chosen), there, sharing
        )
        with Stream(task.train_data, seed, there, sharing, task.counter(task.train_data)) as stream:
            return _Training(stepper, stream, progress, keeper, seed).run()


@dataclass
class _Training:
    """A training under way: its parts, and how far it has come."""

    stepper: Stepper
    stream: Stream
    progress: Progress
    keeper: Checkpointer | None
    seed: int
    step: int = 0
    """Steps done."""
    pending: list[float] = field(default_factory=list)
    """Losses since the last record."""
    terms: dict[str, float] = field(default_factory=dict)
    """Sums, since then, of the terms that the objective names."""
    score: Score | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    before: float = 0.0
    """Seconds before it was cut off."""
    started: float = field(default_factory=time.monotonic)
    checked: bool = False

    def run(self) -> FitReport:
        steps = self.stepper.recipe.steps
        last = None if self.keeper is None else self.keeper.last()
        if last is not None:
            self._go_on(last)
        records, validations = _points(steps, RECORDS), self._validations(steps)
        for number in range(self.step, steps):
            info = self._take_step(number)
            done = self.step = number + 1
            self._report(info, record=done in records, validate=done in validations)
            if self.keeper is not None and self.keeper.wants(done, steps):
                self.keeper.keep(self._snapshot())
        self._require_finite()
        loss = self.records[-1]["loss"]
        return FitReport(
            self.stepper.stage, steps, self.stream.epoch + 1, self.stream.samples, loss, self.score, self._seconds()
        )

    def _take_step(self, number: int) -> StepInfo:
        TURNS.give_way()
        return self.stepper.step(number, (self.stream.draw() for _ in range(self.stepper.batches)))

    def _report(self, info: StepInfo, *, record: bool, validate: bool) -> None:
        self.pending.append(info.loss)
        for name, value in info.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        if not (record or validate or self.progress.is_due(info.step + 1, info.steps)):
            return
        looked = evaluate(self.stepper.model, self.stepper.task) if validate else None
        self.score = looked or self.score
        standing = TrainingProgress(
            stage=info.stage,
            epoch=info.epoch,
            step=info.step + 1,
            steps=info.steps,
            loss=sum(self.pending) / len(self.pending),
            metric=None if looked is None else looked.metric,
            lr=info.learning_rate,
            seconds=self._seconds(),
            terms={name: value / len(self.pending) for name, value in self.terms.items()},
        )
        self.progress.show(standing)
        if record or validate:
            self.progress.record(standing)
            self.records.append(standing.record())
            self.pending.clear()
            self.terms.clear()

    def _require_finite(self) -> None:
        """What the last step did shows in no loss any more."""
        if wrong := not_finite(self.stepper.model):
            raise DivergedError(
                f"stage {self.stepper.stage!r}: {', '.join(wrong[:3])} ended with values that are not finite; lower "
                f"the learning rate, or clip the gradients with {entry('settings', 'gradient_clip', 1.0)}"
            )

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def _validations(self, steps: int) -> set[int]:
        """After which steps to look at the validation data."""
        asked, loader = self.stepper.recipe.validations, self.stepper.task.train_data
        if isinstance(asked, tuple):
            return set(asked)
        if asked is not None:
            return _points(steps, asked)
        try:
            return _points(steps, min(5, steps * self.stepper.batches // max(len(loader), 1)))
        except TypeError:
            return _points(steps, 1)

    def _identity(self) -> dict[str, Any]:
        """What a snapshot must agree in."""
        stepper = self.stepper
        return {
            "format": FORMAT,
            "stage": stepper.stage,
            "seed": self.seed,
            "steps": stepper.recipe.steps,
            "accumulate": stepper.batches,
        }

    def _snapshot(self) -> dict[str, Any]:
        stepper, stream = self.stepper, self.stream
        scaler, state = stepper.accelerator.scaler, stepper.hooks.state
        states = {
            "optimizer": plain(stepper.optimizer.state_dict(), "optimizer"),
            "scaler": None if scaler is None else plain(scaler.state_dict(), "scaler"),
            "hooks": None if state is None else plain(state(), "hooks"),
        }
        if not self.checked:
            check_readable(states)
            self.checked = True
        return {
            **self._identity(),
            **states,
            "step": self.step,
            "tensors": tensors_of(stepper.model),
            "random": stepper.sharing.gathered(random_states(stepper.device)),
            "epoch": stream.epoch,
            "drawn": stream.drawn,
            "samples": stream.samples,
            "pending": list(self.pending),
            "terms": dict(self.terms),
            "score": None if self.score is None else plain(asdict(self.score), "score"),
            "records": plain(self.records, "records"),
            "seconds": self._seconds(),
        }

    def _go_on(self, last: Mapping[str, Any]) -> None:
        stepper, sharing = self.stepper, self.stepper.sharing
        check_same(last, self._identity())
        require_snapshot(last, self._identity())
        if len(set(sharing.gathered(last["step"]))) > 1:
            raise TrainingError(
                "the processes of this run were given different values of `snapshot`; give all the same"
            )
        put_back(stepper.model, last["tensors"])
        restore_optimizer(stepper.optimizer, last["optimizer"])
        with restoring("scaler, or of other hooks"):
            if stepper.accelerator.scaler is not None and last["scaler"] is not None:
                stepper.accelerator.scaler.load_state_dict(last["scaler"])
            if stepper.hooks.restore is not None and last["hooks"] is not None:
                stepper.hooks.restore(last["hooks"])
        self.stream.skip_to(last["epoch"], last["drawn"], last["samples"])
        self.step, self.pending, self.before = last["step"], list(last["pending"]), last["seconds"]
        self.terms = dict(last["terms"])
        self.score = None if last["score"] is None else Score(**last["score"])
        for record in last["records"]:
            self.records.append(dict(record))
            self.progress.record(TrainingProgress(**record))
        if len(last["random"]) == sharing.world:
            with restoring("version of Python, numpy or torch"):
                set_random_states(last["random"][sharing.rank], stepper.device)
        else:
            reseed(mix(own_seed(self.seed, sharing.rank), self.step), stepper.device)


def _points(steps: int, many: int) -> set[int]:
    """So many step counts spread evenly, the last one at the end."""
    return {-(-steps * i // many) for i in range(1, many + 1)}
