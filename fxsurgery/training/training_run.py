"""One running training: its steps, validations, records and snapshots, and the report at its end."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fxsurgery.argument_names import entry
from fxsurgery.errors import DivergedError, TrainingError
from fxsurgery.seeding import mix, reseed
from fxsurgery.training.batch_stream import Stream
from fxsurgery.training.early_stopping import EarlyStopping
from fxsurgery.training.evaluate import Score, evaluate
from fxsurgery.training.finite import not_finite
from fxsurgery.training.progress import Progress, TrainingProgress
from fxsurgery.training.random_state import random_states, set_random_states
from fxsurgery.training.set_up import own_seed
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
from fxsurgery.training.step import StepInfo, Stepper
from fxsurgery.turns import TURNS

MOST_VALIDATIONS = 5
"""Validation passes of a training, unless its recipe says otherwise."""
RECORDS = 50
"""Points of a training curve, beside the validations."""


@dataclass(frozen=True)
class FitReport:
    """The report of a training."""

    stage: str
    steps: int
    epochs: int
    """Number of epochs begun."""
    samples: int
    """Number of training samples seen, in all processes together."""
    loss: float
    """Mean of `StepInfo.loss` over the last steps; NaN without a step."""
    score: Score | None
    """The last validation score, taken at the end; `None` if there was none."""
    seconds: float


@dataclass
class TrainingRun:
    """A running training: its parts and its position."""

    stepper: Stepper
    stream: Stream
    progress: Progress
    keeper: Checkpointer | None
    seed: int
    step: int = 0
    """Number of steps taken."""
    pending: list[float] = field(default_factory=list)
    """Losses since the last record."""
    terms: dict[str, float] = field(default_factory=dict)
    """Sums since then of the terms that the objective names."""
    score: Score | None = None
    records: list[dict[str, Any]] = field(default_factory=list)
    before: float = 0.0
    """Seconds that it took before it was interrupted."""
    started: float = field(default_factory=time.monotonic)
    checked: bool = False
    stopping: EarlyStopping = field(init=False)

    def __post_init__(self) -> None:
        stepper = self.stepper
        self.stopping = EarlyStopping(stepper.recipe.early_stopping, bool(stepper.task.higher_is_better))

    def run(self) -> FitReport:
        """Train from the last snapshot, or from the beginning, to the end."""
        steps = self.stepper.recipe.steps
        last = None if self.keeper is None else self.keeper.last()
        if last is not None:
            self._go_on(last)
        stage, metric = self.stepper.stage, self.stepper.task.metric_name
        with self.progress.callbacks.stage(stage, steps, metric, self.step):
            return self._train(steps)

    def _train(self, steps: int) -> FitReport:
        records, validations = _points(steps, RECORDS), self._validations(steps)
        while self.step < steps and not self.stopping.is_over:
            info = self._take_step(self.step)
            done = self.step = self.step + 1
            self._report(info, record=done in records, validate=done in validations)
            if self.keeper is not None and self.keeper.wants(done, steps):
                self.keeper.keep(self._snapshot())
        if self.stopping.is_over:
            self._note_early_stop(steps)
        best = self.stopping.restore_best(self.stepper.model)
        self._require_finite()
        return FitReport(
            self.stepper.stage, self.step, self.stream.epoch + 1, self.stream.samples, self.records[-1]["loss"],
            best or self.score, self._seconds(),
        )  # fmt: skip

    def _note_early_stop(self, steps: int) -> None:
        validations = f"{self.stopping.waited} validation{'s' * (self.stopping.waited > 1)}"
        self.progress.note(
            f"{self.stepper.stage}: stopped early after step {self.step} of {steps}, since {validations} brought no "
            f"better {self.stepper.task.metric_name}; took the weights of step {self.stopping.step}"
        )

    def _take_step(self, number: int) -> StepInfo:
        TURNS.give_way()
        return self.stepper.step(number, (self.stream.draw() for _ in range(self.stepper.batches)))

    def _report(self, info: StepInfo, *, record: bool, validate: bool) -> None:
        self.progress.callbacks.step(info)
        self.pending.append(info.loss)
        for name, value in info.terms.items():
            self.terms[name] = self.terms.get(name, 0.0) + value
        if not (record or validate or self.progress.is_due(info.step + 1, info.steps)):
            return
        looked = evaluate(self.stepper.model, self.stepper.task) if validate else None
        if looked is not None:
            self.score = looked
            self.progress.callbacks.validation(info.stage, self.stepper.task.metric_name, looked)
            self.stopping.observe(looked, self.step, self.stepper.model)
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
        """Check the weights after the last step, which no loss shows."""
        if wrong := not_finite(self.stepper.model):
            raise DivergedError(
                f"stage {self.stepper.stage!r}: {', '.join(wrong[:3])} ended with values that are not finite; lower "
                f"the learning rate, or clip the gradients with {entry('settings', 'gradient_clip', 1.0)}"
            )

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def _validations(self, steps: int) -> set[int]:
        """Return the steps after which to validate."""
        recipe, loader = self.stepper.recipe, self.stepper.task.train_data
        if isinstance(recipe.validations, tuple):
            return set(recipe.validations)
        if recipe.validations is not None:
            return _points(steps, recipe.validations)
        try:
            epochs = steps * self.stepper.batches // max(len(loader), 1)
        except TypeError:
            epochs = 1
        most = MOST_VALIDATIONS if recipe.early_stopping is None else steps
        return _points(steps, max(1, min(most, epochs)))

    def _identity(self) -> dict[str, Any]:
        """Return the fields in which a snapshot must agree."""
        stepper = self.stepper
        return {
            "format": FORMAT,
            "stage": stepper.stage,
            "seed": self.seed,
            "steps": stepper.recipe.steps,
            "accumulate": stepper.batches,
            "patience": stepper.recipe.early_stopping,
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
            "early_stopping": self.stopping.state(),
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
        self.stopping.restore(last["early_stopping"])
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
    """Return step counts spread evenly, the last one at the end."""
    return {-(-steps * i // many) for i in range(1, many + 1)}
