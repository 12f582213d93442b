"""Latency of several models, side by side.

Machines drift: two models measured one after the other differ by 10 % when they are the same. So all are
interleaved in one process, in a new random order each round, and compared round by round:

    ratio = exp(median over rounds of (log t_model - log t_first))

with a bootstrap interval over the rounds. Peak memory is not among the figures: the operating system counts it
for the process, which holds all the models and PyTorch.
"""

import datetime
import random
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fxsurgery.deploy.inputs import batch_size
from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.session import CPU
from fxsurgery.deploy.stopwatch import Stopwatch, processor
from fxsurgery.errors import DeviceError

CONTENDED_BELOW = 0.95
"""Processor time over wall time, per thread, of a run that had its processors to itself."""
FEWEST_ROUNDS = 5
"""Made however short the time is."""
WARMUP_SHARE = 0.2
"""Of the time, at most."""


@dataclass(frozen=True)
class Latency:
    """One model's times, in milliseconds."""

    name: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    load_ms: float
    first_ms: float
    """The first inference, which also allocates."""
    runs: int
    ratio: float
    """Against the first model, round by round."""
    ratio_low: float
    ratio_high: float
    """Bounds of the ratio's 95 % interval."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LatencyReport:
    """What was measured, where and how."""

    models: tuple[Latency, ...]
    device: str
    provider: str
    """ONNX Runtime's name for what ran it. On a GPU, times include copying inputs and outputs."""
    runtime: str
    threads: int
    batch: int
    seed: int
    date: str
    """In UTC, ISO 8601."""
    contended: bool | None
    """Whether something else took the processor meanwhile: ratios hold, absolute times are too long. `None` on a
    GPU, where it cannot be told."""

    def __getitem__(self, name: str) -> Latency:
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    @override
    def __str__(self) -> str:
        width = max(12, *(len(m.name) + 1 for m in self.models))
        rows = [f"{'':<{width}}{'p50 ms':>10}{'p90 ms':>10}{'min ms':>10}{'ratio':>8}  95 % interval"]
        for m in self.models:
            times = f"{m.p50_ms:>10.3f}{m.p90_ms:>10.3f}{m.min_ms:>10.3f}{m.ratio:>8.3f}"
            rows.append(f"{m.name:<{width}}{times}  {m.ratio_low:.3f} to {m.ratio_high:.3f}")
        busy = "; the machine was busy" if self.contended else ""
        rows.append(f"{self.device}, {self.threads} thread(s), batch {self.batch}, {self.runtime}, {self.date}{busy}")
        return "\n".join(rows)


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

    def __post_init__(self) -> None:
        if min(self.rounds, self.threads) < 1 or self.warmup < 0 or not self.seconds > 0:
            raise DeviceError(f"rounds, threads and seconds must be positive, and warmup not negative: {self}")


def compare_latency(
    models: Mapping[str, Path | OnnxModel],
    inputs: tuple[Tensor, ...],
    *,
    rounds: int = 200,
    warmup: int = 10,
    threads: int = 1,
    seconds: float = 20.0,
    seed: int = 0,
) -> LatencyReport:
    """Measure models on this machine's CPU through ONNX Runtime; the first is what the others are compared to.

    Args:
        models: ONNX files by name.
        inputs: what to run them on, the batch along dim 0.
        rounds: runs of each model that count, at most.
        warmup: rounds before, which do not; at most a fifth of the time goes to them.
        threads: of ONNX Runtime.
        seconds: for all rounds; none begins after it, but five that count are always made.
        seed: of the order and of the bootstrap.

    Raises:
        DeviceError: there is no model, or fewer than one thread or round.
        ExportError: a file cannot be loaded or run.
    """
    plan = Plan(rounds=rounds, warmup=warmup, threads=threads, seconds=seconds, seed=seed)
    return measure(models, inputs, plan)


def measure_latency(model: Path | OnnxModel, inputs: tuple[Tensor, ...], **options: Any) -> LatencyReport:  # noqa: ANN401
    """Measure one model, named as its file; options as of `compare_latency`.

    Raises:
        DeviceError: an option is out of range.
        ExportError: the file cannot be loaded or run.
    """
    path = model.path if isinstance(model, OnnxModel) else Path(model)
    return compare_latency({path.stem: model}, inputs, **options)


def measure(models: Mapping[str, Path | OnnxModel], inputs: tuple[Tensor, ...], plan: Plan) -> LatencyReport:
    """Measure models side by side, as planned.

    Raises:
        DeviceError: there is no model, or no such provider.
        ExportError: a file cannot be loaded or run.
    """
    if not models:
        raise DeviceError("there is no model to measure")
    watches = {name: Stopwatch(model, inputs, plan.threads, plan.provider) for name, model in models.items()}
    times, share = _rounds(watches, plan)
    first = times[next(iter(times))]
    is_cpu = plan.provider == CPU
    return LatencyReport(
        models=tuple(_latency(name, watches[name], t, first, plan.seed) for name, t in times.items()),
        device=processor() if is_cpu else f"{plan.provider} device 0",
        provider=plan.provider,
        runtime=f"onnxruntime {onnxruntime.__version__}",
        threads=plan.threads,
        batch=batch_size(inputs),
        seed=plan.seed,
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        contended=share / plan.threads < CONTENDED_BELOW if is_cpu else None,
    )


def ratio_of(
    times: NDArray[np.float64], first: NDArray[np.float64], seed: int = 0, samples: int = 2_000
) -> tuple[float, float, float]:
    """How much longer `times` are than `first`, round by round, with a 95 % bootstrap interval."""
    logs = np.log(times) - np.log(first)
    drawn = np.random.default_rng(seed).integers(0, len(logs), (samples, len(logs)))
    low, high = np.percentile(np.median(logs[drawn], axis=1), [2.5, 97.5])
    return float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high))


def _rounds(watches: Mapping[str, Stopwatch], plan: Plan) -> tuple[dict[str, NDArray[np.float64]], float]:
    """Each model's seconds, round by round, and how many processors were in use on average."""
    order, shuffler = list(watches), random.Random(plan.seed)
    times: dict[str, list[float]] = {name: [] for name in watches}
    used, began = 0.0, time.perf_counter()
    for number in range(plan.warmup):
        if number and time.perf_counter() - began > WARMUP_SHARE * plan.seconds:
            break
        for watch in watches.values():
            watch.run()
    for number in range(plan.rounds):
        if number >= FEWEST_ROUNDS and time.perf_counter() - began > plan.seconds:
            break
        shuffler.shuffle(order)
        for name in order:
            wall, processor_seconds = watches[name].run()
            times[name].append(wall)
            used += processor_seconds
    return {name: np.asarray(t) for name, t in times.items()}, used / sum(map(sum, times.values()))


def _latency(
    name: str, watch: Stopwatch, seconds: NDArray[np.float64], first: NDArray[np.float64], seed: int
) -> Latency:
    p50, p90, p99 = (float(p) for p in np.percentile(seconds * 1e3, [50, 90, 99]))
    ratio, low, high = ratio_of(seconds, first, seed)
    return Latency(
        name=name, p50_ms=p50, p90_ms=p90, p99_ms=p99, min_ms=float(seconds.min() * 1e3), load_ms=watch.load_ms,
        first_ms=watch.first_ms, runs=len(seconds), ratio=ratio, ratio_low=low, ratio_high=high,
        bytes=watch.bytes, sha256=watch.sha256,
    )  # fmt: skip
