"""Measure which memory format and number format train fastest on this machine at equal losses, for "auto".

Every mode takes the same few optimizer steps on copies of the model, on one batch and at the full learning rate. Modes
take turns, so that whatever else the machine does meets all alike; the first turn and the first step of each turn warm
up. A mode is taken if its median step is clearly faster than that of the plain mode and its losses are the same within
a tolerance: they depend on the forward pass, the gradients and the updates.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import median
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from typing_extensions import override

from fxsurgery.errors import SurgeryError
from fxsurgery.training.batch_stream import Portion
from fxsurgery.training.device import Device
from fxsurgery.training.distributed import BatchSharding, Shard
from fxsurgery.training.memory_format import conv_weights
from fxsurgery.training.objective import Batch, Terms
from fxsurgery.training.recipe import MemoryFormat, MixedPrecision, Recipe
from fxsurgery.training.schedules import constant
from fxsurgery.training.set_up import set_up
from fxsurgery.training.step import Hooks, Stepper
from fxsurgery.training.task import Task
from fxsurgery.turns import TURNS

Auto: TypeAlias = Literal["auto"]
AUTO: Auto = "auto"
Clock: TypeAlias = Callable[[], float]

TURNS_EACH, STEPS = 4, 3
"""Turns of each mode, and optimizer steps in a turn."""
FAST_ENOUGH = 0.9
"""Fraction of the plain mode's time that a faster one may take at most."""
TOLERANCE, HALF_TOLERANCE = 1e-3, 2e-2
"""Tolerance of a loss, relative to the largest plain one: in the same precision, and in a lower one."""


@dataclass(frozen=True)
class TrainingMode:
    """Memory format and number format of a training."""

    memory_format: MemoryFormat | None = None
    mixed_precision: MixedPrecision | None = None

    def of(self, recipe: Recipe) -> Recipe:
        """Return the recipe followed in this mode."""
        return replace(recipe, memory_format=self.memory_format, mixed_precision=self.mixed_precision)

    @override
    def __str__(self) -> str:
        precision = None if self.mixed_precision == "no" else self.mixed_precision
        return ", ".join(filter(None, (self.memory_format, precision))) or "plain"


PLAIN = TrainingMode()


@dataclass
class Measured:
    """Measurements of the steps of one mode."""

    seconds: list[float] = field(default_factory=list)
    """Seconds of each step that counts."""
    losses: list[float] = field(default_factory=list)
    """Losses of the steps of one turn; each turn has the same."""
    failure: str = ""
    """Why it cannot train so; empty where it can."""


def modes(
    model: nn.Module, memory_format: MemoryFormat | Auto | None, mixed_precision: MixedPrecision | Auto | None
) -> list[TrainingMode]:
    """Return the modes to choose among, the plain one first; one alone where nothing is left to choose."""
    formats: list[MemoryFormat | None] = [None] if memory_format == "auto" else [memory_format]
    if memory_format == "auto" and conv_weights(model):
        formats.append("channels_last")
    precisions: list[MixedPrecision | None] = ["no", "bf16"] if mixed_precision == "auto" else [mixed_precision]
    return [TrainingMode(*pair) for pair in product(formats, precisions)]


@dataclass(frozen=True, eq=False)
class Probe:
    """Takes the steps of a training in several modes."""

    copy: Callable[[], nn.Module]
    """Makes a copy of the model."""
    task: Task
    recipe: Recipe
    """With the optimizer of the training."""
    seed: int = 0
    device: Device = None
    clock: Clock = time.perf_counter

    def measure(self, candidates: Sequence[TrainingMode]) -> dict[TrainingMode, Measured]:
        """Return the measurements of each mode; in a distributed run, of this process alone.

        A mode that fails is tried once. The random states of the process are left as they were.
        """
        batch = self.task.first_batch()
        found = {mode: Measured() for mode in candidates}
        for turn in range(TURNS_EACH):
            for mode, measured in found.items():
                if not measured.failure:
                    self._take_turn(mode, batch, measured, counts=turn > 0)
        return found

    def _take_turn(self, mode: TrainingMode, batch: Any, measured: Measured, *, counts: bool) -> None:  # noqa: ANN401
        try:
            seconds, losses = self._steps(mode, batch)
        except SurgeryError as error:
            measured.failure = str(error)
            return
        measured.losses = losses
        if counts:
            measured.seconds += seconds[1:]

    def _steps(self, mode: TrainingMode, batch: Any) -> tuple[list[float], list[float]]:  # noqa: ANN401
        """Return the seconds and the losses of the steps of a turn."""
        model, seconds, losses = self.copy(), list[float](), list[float]()
        recipe = replace(mode.of(self.recipe), steps=STEPS, schedule=constant())
        with set_up(model, recipe, self.seed, None, self.device) as (accelerator, there, chosen):
            _switch_dropout_off(model)
            optimizer, hooks = recipe.optimizer_of(chosen), Hooks(objective=_on_copies)
            stepper = Stepper(model, self.task, recipe, "probe", hooks, accelerator, optimizer, there, BatchSharding())
            portion = Portion(0, batch, 0, Shard(0, 0, 1.0), whole=False)
            for number in range(STEPS):
                TURNS.give_way()
                began = self.clock()
                losses.append(stepper.step(number, [portion] * stepper.batches).loss)
                if there.type == "cuda":
                    torch.cuda.synchronize(there)
                seconds.append(self.clock() - began)
        return seconds, losses


def _switch_dropout_off(model: nn.Module) -> None:
    """Make losses comparable: the entries that a dropout draws depend on the memory format."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.eval()


def _on_copies(model: nn.Module, batch: Batch) -> tuple[Tensor, Terms]:
    """Return the task's loss, on inputs that a model may write into."""
    return batch.loss(batch.predict(model)), {}


def choose(found: Mapping[TrainingMode, Measured]) -> tuple[TrainingMode, str]:
    """Return the fastest mode that is as accurate as the plain one, the first; and the reason, for a user."""
    plain, *others = found
    if found[plain].failure:
        return plain, f"{plain}: the steps to measure failed, {found[plain].failure}"
    shares, why = dict[TrainingMode, float](), list[str]()
    for mode in others:
        if refused := _refused(mode, found[mode], found[plain].losses):
            why.append(f"{mode} {refused}")
        else:
            shares[mode] = median(found[mode].seconds) / median(found[plain].seconds)
            why.append(f"{mode} takes {shares[mode]:.2f} of its time")
    best = min(shares, key=shares.__getitem__, default=plain)
    if best == plain or shares[best] > FAST_ENOUGH:
        return plain, f"{plain}: no other mode is clearly faster ({'; '.join(why)})"
    return best, f"{best}, which takes {shares[best]:.2f} of the time of: {plain}"


def _refused(mode: TrainingMode, measured: Measured, plain: Sequence[float]) -> str:
    """Return why a mode is ruled out; an empty string if it is not."""
    if measured.failure:
        return f"fails: {measured.failure}"
    tolerance = HALF_TOLERANCE if mode.mixed_precision in {"bf16", "fp16"} else TOLERANCE
    scale = max(map(abs, plain))
    differences = [abs(a - b) for a, b in zip(measured.losses, plain, strict=True)]
    if all(difference <= tolerance * scale for difference in differences):
        return ""
    return f"has other losses: {_listed(measured.losses)}, not {_listed(plain)}"


def _listed(losses: Sequence[float]) -> str:
    return ", ".join(f"{loss:.6g}" for loss in losses)
