"""What a target measured, as plain numbers: what a device at the other end of a cable would send.

Nothing here refers to a session, a tensor or a file of this machine, so a measurement is JSON and back by
`dataclasses.asdict` and `pydantic.TypeAdapter(Measurement)`. All statistics are worked out from it
(`fxsurgery.deploy.latency_report.report_of`), wherever it was measured.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelRuns:
    """The runs of one model between one loading of the models and the next."""

    load_ms: float
    """Time to load the file, which the system has in memory."""
    first_ms: float
    """Time of the first run, which also allocates."""
    run_ms: tuple[float, ...]
    """Time of each run that counts, round by round."""


@dataclass(frozen=True, kw_only=True)
class MeasurementBlock:
    """The rounds between one loading of the models and the next."""

    models: tuple[ModelRuns, ...]
    """In the order of `Measurement.models`."""
    processor_ms: float
    """Processor time that all runs together took, on all cores."""


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """The file that was measured."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A measurement of models side by side, with the facts of the machine."""

    models: tuple[MeasuredModel, ...]
    """The first is what the others are compared to."""
    blocks: tuple[MeasurementBlock, ...]
    device: str
    """The processor's name."""
    provider: str
    """ONNX Runtime's name for what ran the models."""
    runtime: str
    threads: int
    batch: int
    seed: int
    date: str
    """In UTC, ISO 8601."""
