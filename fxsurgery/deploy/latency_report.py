"""Latency of several models, measured side by side.

Machines drift: the same model measured twice in a row differs by 10 %. So all models are interleaved in one process, in
a new random order each round, and compared round by round:

    ratio = exp(median over rounds of (log t_model - log t_first))

with a bootstrap interval over loadings and rounds. Peak memory is not measured: the operating system counts it for the
whole process, which holds all models and PyTorch.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

from fxsurgery.batch_layout import Statement, as_stated
from fxsurgery.deploy.interleave import Measure, Models
from fxsurgery.deploy.measurement import Measurement
from fxsurgery.deploy.ort_session import CPU
from fxsurgery.display import bar, card, table
from fxsurgery.errors import DeviceError
from fxsurgery.example_inputs import ExampleInputs, inputs_of
from fxsurgery.option_types import checked
from fxsurgery.printable import lines, printable
from fxsurgery.surroundings import plain_surroundings

Times = NDArray[np.float64]

MAX_NAMED = 4
"""Number of models that `repr` names."""
CONTENDED_BELOW = 0.95
"""Ratio of processor time to wall time per thread below which other processes used the processors."""


@dataclass(frozen=True)
class Latency:
    """Latency of one model, in milliseconds."""

    name: str
    p50_ms: float
    p90_ms: float
    p99_ms: float
    min_ms: float
    load_ms: float
    """Time to create the session from a cached file; median over loadings, as for `first_ms`."""
    first_ms: float
    """Time of the first inference, which also allocates memory."""
    runs: int
    ratio: float
    """Latency relative to the first model, compared round by round."""
    ratio_low: float
    ratio_high: float
    """Upper bound of the 95 % interval of the ratio; `ratio_low` is the lower bound."""
    bytes: int
    sha256: str


@dataclass(frozen=True)
class LatencyReport:
    """Latencies with the device and the settings of the measurement. `print` shows a table, as does a notebook."""

    models: tuple[Latency, ...]
    device: str
    provider: str
    """Execution provider of ONNX Runtime. On a GPU, times include copying inputs and outputs."""
    runtime: str
    threads: int
    batch: int
    loads: int
    """Number of times that the models were loaded anew, so that no single memory layout decides."""
    seed: int
    date: str
    """Time of the measurement in UTC, ISO 8601."""
    contended: bool | None
    """Whether other processes used the processor meanwhile: ratios hold, absolute times are too long. `None` on a GPU,
    where this is unknown."""

    def __getitem__(self, name: str) -> Latency:
        for model in self.models:
            if model.name == name:
                return model
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain values, for JSON."""
        return asdict(self)

    @override
    def __repr__(self) -> str:
        times = ", ".join(f"{m.name} {m.p50_ms:.3f} ms" for m in self.models[:MAX_NAMED])
        more = f" and {len(self.models) - MAX_NAMED} more" if len(self.models) > MAX_NAMED else ""
        ratio = f", ratio {self.models[-1].ratio:.3f}" if len(self.models) == 2 else ""
        return printable(f"<LatencyReport: {times}{more}{ratio}; batch {self.batch} on {self.device}>")

    def _repr_html_(self) -> str:
        slowest = max((m.p50_ms for m in self.models), default=1.0) or 1.0
        rows = [
            (
                m.name, bar(m.p50_ms / slowest, f"{m.p50_ms:.3f} ms"), f"{m.p90_ms:.3f}", f"{m.min_ms:.3f}",
                f"{m.ratio:.3f}", f"{m.ratio_low:.3f} to {m.ratio_high:.3f}",
            )
            for m in self.models
        ]  # fmt: skip
        return card(
            "Latency", table(("", "p50", "p90, ms", "min, ms", "ratio", "95 % interval"), rows), self._circumstances()
        )

    def _circumstances(self) -> str:
        busy = "; the machine was busy" if self.contended else ""
        return f"{self.device}, {self.threads} thread(s), batch {self.batch}, {self.runtime}, {self.date}{busy}"

    @override
    def __str__(self) -> str:
        width = max(12, *(len(m.name) + 1 for m in self.models))
        rows = [f"{'':<{width}}{'p50 ms':>10}{'p90 ms':>10}{'min ms':>10}{'ratio':>8}  95 % interval"]
        for m in self.models:
            times = f"{m.p50_ms:>10.3f}{m.p90_ms:>10.3f}{m.min_ms:>10.3f}{m.ratio:>8.3f}"
            rows.append(f"{m.name:<{width}}{times}  {m.ratio_low:.3f} to {m.ratio_high:.3f}")
        return lines([*rows, self._circumstances()])


@checked(DeviceError, apart=("example_inputs",))
@plain_surroundings()
def compare_latency(  # noqa: PLR0913 -- what a user may want to say, each by name
    models: Models,
    example_inputs: ExampleInputs | None,
    *,
    example_kwargs: Mapping[str, Any] | None = None,
    batch_dims: Statement = None,
    rounds: int = 200,
    warmup: int = 10,
    threads: int = 1,
    seconds: float = 20.0,
    seed: int = 0,
) -> LatencyReport:
    """Measure models on this machine's CPU through ONNX Runtime; the others are compared to the first.

    Args:
        models: ONNX files by name.
        example_inputs: what the model in PyTorch is called with, in one of the forms of `fxsurgery.example_inputs`; a
            dict is given by name.
        example_kwargs: inputs by name, beside the others.
        batch_dims: which dim of the inputs is the batch, for the report; inferred from their sizes by default.
        rounds: largest number of measured runs of each model.
        warmup: rounds after each of five loadings that are not measured; they take a fifth of the time at most.
        threads: number of threads of ONNX Runtime.
        seconds: time limit for the whole measurement; at least three rounds, if requested, are measured anyway.
        seed: seed of the order of the runs and of the bootstrap.

    Raises:
        DataError: `batch_dims` does not fit the inputs.
        DeviceError: there is no model, an option is out of range, or there are fewer cores than threads.
        ExportError: a file cannot be loaded or run.
    """
    plan = Measure(rounds=rounds, warmup=warmup, threads=threads, seconds=seconds, seed=seed)
    inputs = inputs_of(None, example_inputs, example_kwargs)
    return report_of(plan.take(models, inputs if batch_dims is None else as_stated(inputs, batch_dims)))


def report_of(measurement: Measurement) -> LatencyReport:
    """Return the statistics of a measurement, wherever it was taken."""
    is_cpu = measurement.provider == CPU
    return LatencyReport(
        models=tuple(_latency(place, measurement) for place in range(len(measurement.models))),
        device=measurement.device,
        provider=measurement.provider,
        runtime=measurement.runtime,
        threads=measurement.threads,
        batch=measurement.batch,
        loads=len(measurement.blocks),
        seed=measurement.seed,
        date=measurement.date,
        contended=_share(measurement) / measurement.threads < CONTENDED_BELOW if is_cpu else None,
    )


def ratio_of(
    times: Sequence[Times], first: Sequence[Times], seed: int = 0, samples: int = 1_000
) -> tuple[float, float, float]:
    """Return the ratio of `times` to `first`, compared round by round, and its 95 % bootstrap interval.

    Args:
        times: times of the model in milliseconds, one array for each loading.
        first: times of the model to compare with, likewise.
        seed: seed of the bootstrap, which draws loadings, and rounds within them.
        samples: number of bootstrap samples.
    """
    logs = [np.log(a) - np.log(b) for a, b in zip(times, first, strict=True)]
    generator = np.random.default_rng(seed)

    def draw() -> float:
        chosen = (logs[i] for i in generator.integers(0, len(logs), len(logs)))
        return float(np.median(np.concatenate([x[generator.integers(0, len(x), len(x))] for x in chosen])))

    low, high = np.percentile([draw() for _ in range(samples)], [2.5, 97.5])
    return float(np.exp(np.median(np.concatenate(logs)))), float(np.exp(low)), float(np.exp(high))


def _share(measurement: Measurement) -> float:
    """Return the average number of processors in use over the runs."""
    used = sum(block.processor_ms for block in measurement.blocks)
    return used / sum(sum(runs.run_ms) for block in measurement.blocks for runs in block.models)


def _latency(place: int, measurement: Measurement) -> Latency:
    """Return the statistics of one model."""
    runs = [block.models[place] for block in measurement.blocks]
    times, first = ([np.asarray(block.models[i].run_ms) for block in measurement.blocks] for i in (place, 0))
    p50, p90, p99 = (float(p) for p in np.percentile(np.concatenate(times), [50, 90, 99]))
    ratio, low, high = ratio_of(times, first, measurement.seed)
    model = measurement.models[place]
    return Latency(
        name=model.name, p50_ms=p50, p90_ms=p90, p99_ms=p99, min_ms=float(np.concatenate(times).min()),
        load_ms=statistics.median(r.load_ms for r in runs), first_ms=statistics.median(r.first_ms for r in runs),
        runs=sum(len(r.run_ms) for r in runs), ratio=ratio, ratio_low=low, ratio_high=high,
        bytes=model.bytes, sha256=model.sha256,
    )  # fmt: skip
