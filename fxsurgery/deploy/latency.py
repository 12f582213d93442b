"""Latency of several models, side by side.

Machines drift: two models measured one after the other differ by 10 % when they are the same. So all are
interleaved in one process, in a new random order each round, and compared round by round:

    ratio = exp(median over rounds of (log t_model - log t_first))

with a bootstrap interval over the rounds.
"""

import datetime
import hashlib
import platform
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.parity import open_session
from fxsurgery.errors import DeviceError

CONTENDED_BELOW = 0.95
"""Processor time over wall time of a run that had its processor to itself."""


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
    runtime: str
    threads: int
    batch: int
    date: str
    contended: bool
    """Whether something else took the processor meanwhile: ratios hold, absolute times are too long."""

    def __getitem__(self, name: str) -> Latency:
        return next(m for m in self.models if m.name == name)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)

    @override
    def __str__(self) -> str:
        rows = [f"{'':<12}{'p50 ms':>10}{'p90 ms':>10}{'min ms':>10}{'ratio':>8}  95 % interval"]
        for m in self.models:
            times = f"{m.p50_ms:>10.3f}{m.p90_ms:>10.3f}{m.min_ms:>10.3f}{m.ratio:>8.3f}"
            rows.append(f"{m.name:<12}{times}  {m.ratio_low:.3f} to {m.ratio_high:.3f}")
        busy = "; the machine was busy" if self.contended else ""
        rows.append(f"{self.device}, {self.threads} thread(s), batch {self.batch}, {self.runtime}, {self.date}{busy}")
        return "\n".join(rows)


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
        warmup: rounds before, which do not.
        threads: of ONNX Runtime.
        seconds: for the rounds that count; no round begins after it, but ten are always made.
        seed: of the order and of the bootstrap.

    Raises:
        DeviceError: there is no model, or fewer than one thread or round.
        ExportError: a file cannot be loaded or run.
    """
    if not models or threads < 1 or rounds < 1:
        raise DeviceError("there must be at least one model, one thread and one round to measure")
    feed = [x.detach().cpu().numpy() for x in inputs]
    loaded = {
        name: _Loaded(m.path if isinstance(m, OnnxModel) else Path(m), feed, threads) for name, m in models.items()
    }
    order, shuffler = list(loaded), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in loaded}
    shares = list[float]()
    stop = None
    for number in range(-warmup, rounds):
        stop = time.perf_counter() + seconds if number == 0 else stop
        if stop is not None and number >= 10 and time.perf_counter() > stop:
            break
        shuffler.shuffle(order)
        for name in order:
            wall, share = loaded[name].run()
            if number >= 0:
                times[name].append(wall)
                shares.append(share)
    first = np.asarray(times[next(iter(loaded))])
    return LatencyReport(
        models=tuple(_latency(name, loaded[name], np.asarray(t), first, seed) for name, t in times.items()),
        device=_processor(),
        runtime=f"onnxruntime {onnxruntime.__version__}",
        threads=threads,
        batch=len(inputs[0]) if inputs and inputs[0].dim() else 1,
        date=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"),
        contended=bool(np.median(shares) < CONTENDED_BELOW),
    )


class _Loaded:
    """A session with its input, and how long it took to get there."""

    def __init__(self, path: Path, feed: Sequence[Any], threads: int) -> None:
        content = path.read_bytes() if path.is_file() else b""
        self.bytes, self.sha256 = len(content), hashlib.sha256(content).hexdigest()
        began = time.perf_counter()
        self._session = open_session(path, threads)
        self.load_ms = (time.perf_counter() - began) * 1e3
        self._feed = {i.name: x for i, x in zip(self._session.get_inputs(), feed, strict=False)}
        self.first_ms = self.run()[0] * 1e3

    def run(self) -> tuple[float, float]:
        """One inference: its seconds, and the processor's share of them."""
        used, began = time.process_time(), time.perf_counter()
        self._session.run(None, self._feed)
        wall = time.perf_counter() - began
        return wall, (time.process_time() - used) / max(wall, 1e-9)


def _latency(name: str, model: _Loaded, seconds: NDArray[np.float64], first: NDArray[np.float64], seed: int) -> Latency:
    p50, p90, p99 = np.percentile(seconds * 1e3, [50, 90, 99])
    ratio, low, high = ratio_of(seconds, first, seed)
    return Latency(
        name, float(p50), float(p90), float(p99), float(seconds.min() * 1e3), model.load_ms, model.first_ms,
        len(seconds), ratio, low, high, model.bytes, model.sha256,
    )  # fmt: skip


def ratio_of(
    times: NDArray[np.float64], first: NDArray[np.float64], seed: int = 0, samples: int = 2_000
) -> tuple[float, float, float]:
    """How much longer `times` are than `first`, round by round, with a 95 % bootstrap interval."""
    logs = np.log(times) - np.log(first)
    drawn = np.random.default_rng(seed).integers(0, len(logs), (samples, len(logs)))
    low, high = np.percentile(np.median(logs[drawn], axis=1), [2.5, 97.5])
    return float(np.exp(np.median(logs))), float(np.exp(low)), float(np.exp(high))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
