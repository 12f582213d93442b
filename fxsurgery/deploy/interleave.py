"""Running several models in turns, so that what disturbs one disturbs all.

A session's speed also depends on where its memory happens to lie: the same file loaded twice differs by 1 to 5 %,
for as long as it is loaded. So all the models are loaded anew several times, in random order.
"""

import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fxsurgery.argument_names import assigned
from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.session import CPU
from fxsurgery.deploy.stopwatch import Stopwatch
from fxsurgery.errors import DeviceError
from fxsurgery.inputs import Inputs
from fxsurgery.option_types import check_fields

FEWEST_ROUNDS = 3
"""Made after each loading, however short the time is."""
WARMUP_SHARE = 0.2
"""Of the time, at most."""
MOST: Mapping[str, int] = {"rounds": 10**6, "warmup": 10**6, "loads": 100, "seconds": 24 * 3600}
"""The largest value of each option: beyond it, a measurement would not end."""

Models = Mapping[str, Path | OnnxModel]
Seconds = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how to measure.

    Raises:
        DeviceError: there would be nothing to measure, or no time or thread to do it.
    """

    rounds: int = 200
    warmup: int = 10
    threads: int = 1
    seconds: float = 20.0
    seed: int = 0
    provider: str = CPU
    loads: int = 5

    def __post_init__(self) -> None:
        check_fields(self, DeviceError, name="latency")
        if min(self.rounds, self.threads, self.loads) < 1 or min(self.warmup, self.seed) < 0 or not self.seconds > 0:
            raise DeviceError(
                f"rounds, threads, loads and seconds must be positive, and warmup and seed not negative: {self}"
            )
        for name, most in MOST.items():
            if (value := getattr(self, name)) > most:
                raise DeviceError(f"{assigned(name, value)} is too large to measure; pass at most {most:,}")
        if self.threads > (cores := available_cores()):
            raise DeviceError(
                f"{assigned('threads', self.threads, ',')} is more than the {cores} processor core(s) available to "
                f"this process; pass {assigned('threads', cores)} or fewer"
            )


def available_cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class Block:
    """The rounds between one loading of the models and the next."""

    watches: Mapping[str, Stopwatch]
    times: Mapping[str, Seconds]
    """Of each model, round by round."""
    processor_seconds: float


def interleaved(models: Models, inputs: Inputs, plan: Plan) -> list[Block]:
    """Run all models in turns, in a new random order each round.

    Raises:
        DeviceError: there is no such provider.
        ExportError: a file cannot be loaded or run.
    """
    shuffler, began = random.Random(plan.seed), time.perf_counter()
    blocks = list[Block]()
    for number in range(plan.loads):
        rounds = plan.rounds * (number + 1) // plan.loads - plan.rounds * number // plan.loads
        if not rounds or (blocks and time.perf_counter() - began > plan.seconds):
            continue
        names = list(models)
        shuffler.shuffle(names)
        watches = {name: Stopwatch(models[name], inputs, plan.threads, plan.provider) for name in names}
        until = began + plan.seconds * (number + 1) / plan.loads
        _warm_up(watches, plan)
        blocks.append(_block(watches, rounds, until, shuffler))
        for watch in watches.values():
            watch.close()
    return blocks


def _warm_up(watches: Mapping[str, Stopwatch], plan: Plan) -> None:
    began = time.perf_counter()
    for number in range(plan.warmup):
        if number and time.perf_counter() - began > WARMUP_SHARE * plan.seconds / plan.loads:
            return
        for watch in watches.values():
            watch.run()


def _block(watches: Mapping[str, Stopwatch], rounds: int, until: float, shuffler: random.Random) -> Block:
    order, used = list(watches), 0.0
    times: dict[str, list[float]] = {name: [] for name in watches}
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() > until:
            break
        shuffler.shuffle(order)
        for name in order:
            wall, processor_seconds = watches[name].run()
            times[name].append(wall)
            used += processor_seconds
    return Block(watches, {name: np.asarray(t) for name, t in times.items()}, used)
