"""Interleaved runs of several models, so that disturbances affect all of them alike.

The speed of a session also depends on its memory layout: two sessions of the same file differ by 1 to 5 %, for as long
as they exist. So all models are loaded anew several times, in random order.
"""

import datetime
import os
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from typing_extensions import override

from fxsurgery.argument_names import assigned
from fxsurgery.calls import checked_construction
from fxsurgery.deploy.measurement import MeasuredModel, Measurement, MeasurementBlock, ModelRuns
from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.ort_session import CPU
from fxsurgery.deploy.steps import DeployStep
from fxsurgery.deploy.stopwatch import Stopwatch, processor
from fxsurgery.errors import DeviceError
from fxsurgery.inputs import Inputs
from fxsurgery.option_types import check_fields

FEWEST_ROUNDS = 3
"""Minimum number of rounds after each loading, however short the time limit."""
WARMUP_SHARE = 0.2
"""Largest fraction of the time that is spent on warm-up."""
MOST: Mapping[str, int] = {"rounds": 10**6, "warmup": 10**6, "loads": 100, "seconds": 24 * 3600}
"""Largest value of each option, so that a measurement ends."""

Models = Mapping[str, Path | OnnxModel]


@checked_construction
@dataclass(frozen=True, kw_only=True)
class Measure(DeployStep):
    """Measure the latency of the file; the last step of a chain.

    Raises:
        DeviceError: an option is out of range.

    Example:
        >>> str(Measure(rounds=50, threads=1))
        'measure(rounds=50)'
    """

    name: ClassVar[str] = "measure"

    rounds: int = 200
    warmup: int = 10
    threads: int = 1
    seconds: float = 20.0
    seed: int = 0
    provider: str = CPU
    loads: int = 5

    @override
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

    def take(self, models: Models, inputs: Inputs) -> Measurement:
        """Measure models side by side on this machine.

        Raises:
            DeviceError: there is no model, or the provider is not available.
            ExportError: a file cannot be loaded or run.
        """
        if not models:
            raise DeviceError("`models` holds no model to measure; pass at least one")
        import onnxruntime  # noqa: PLC0415 -- slow to import

        files, blocks = interleaved(models, inputs, self)
        return Measurement(
            models=files,
            blocks=tuple(blocks),
            device=processor() if self.provider == CPU else f"{self.provider} device 0",
            provider=self.provider,
            runtime=f"onnxruntime {onnxruntime.__version__}",
            threads=self.threads,
            batch=inputs.batch or 1,
            seed=self.seed,
            date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        )


def available_cores() -> int:
    """Number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def interleaved(
    models: Models, inputs: Inputs, plan: Measure
) -> tuple[tuple[MeasuredModel, ...], list[MeasurementBlock]]:
    """Run all models interleaved, in a new random order each round; return the files that were run, and the times.

    Raises:
        DeviceError: the provider is not available.
        ExportError: a file cannot be loaded or run.
    """
    shuffler, began = random.Random(plan.seed), time.perf_counter()
    blocks, files = list[MeasurementBlock](), dict[str, MeasuredModel]()
    for number in range(plan.loads):
        rounds = plan.rounds * (number + 1) // plan.loads - plan.rounds * number // plan.loads
        if not rounds or (blocks and time.perf_counter() - began > plan.seconds):
            continue
        names = list(models)
        shuffler.shuffle(names)
        watches = {name: Stopwatch(models[name], inputs, plan.threads, plan.provider) for name in names}
        until = began + plan.seconds * (number + 1) / plan.loads
        _warm_up(watches, plan)
        blocks.append(_block(list(models), watches, rounds, until, shuffler))
        files |= {n: MeasuredModel(name=n, bytes=w.bytes, sha256=w.sha256) for n, w in watches.items()}
        for watch in watches.values():
            watch.close()
    return tuple(files[name] for name in models), blocks


def _warm_up(watches: Mapping[str, Stopwatch], plan: Measure) -> None:
    began = time.perf_counter()
    for number in range(plan.warmup):
        if number and time.perf_counter() - began > WARMUP_SHARE * plan.seconds / plan.loads:
            return
        for watch in watches.values():
            watch.run()


def _block(
    names: list[str], watches: Mapping[str, Stopwatch], rounds: int, until: float, shuffler: random.Random
) -> MeasurementBlock:
    order, used = list(watches), 0.0
    times: dict[str, list[float]] = {name: [] for name in watches}
    for number in range(rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() > until:
            break
        shuffler.shuffle(order)
        for name in order:
            wall, processor_seconds = watches[name].run()
            times[name].append(wall * 1e3)
            used += processor_seconds
    runs = (ModelRuns(load_ms=watches[n].load_ms, first_ms=watches[n].first_ms, run_ms=tuple(times[n])) for n in names)
    return MeasurementBlock(models=tuple(runs), processor_ms=used * 1e3)
