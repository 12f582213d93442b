"""Measurements of a target as plain numbers, as a remote device would send them.

Nothing here refers to a session, a tensor or a file of this machine, so a measurement is JSON and back by
`dataclasses.asdict` and `pydantic.TypeAdapter(Measurement)`. All statistics are worked out from it
(`fxsurgery.deploy.latency_report.report_of`), wherever it was measured.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelRuns:
    """Runs of one model between two loadings of the models."""

    load_ms: float
    """Time to create the session, with the file in the page cache."""
    first_ms: float
    """Time of the first run, which also allocates memory."""
    run_ms: tuple[float, ...]
    """Time of each measured run, round by round."""


@dataclass(frozen=True, kw_only=True)
class MeasurementBlock:
    """Rounds between two loadings of the models."""

    models: tuple[ModelRuns, ...]
    """In the order of `Measurement.models`."""
    processor_ms: float
    """Processor time of all runs together, on all cores."""


@dataclass(frozen=True, kw_only=True)
class MeasuredModel:
    """A file that was measured."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A side-by-side measurement of models, with a description of the machine."""

    models: tuple[MeasuredModel, ...]
    """The models; the first is the baseline of the others."""
    blocks: tuple[MeasurementBlock, ...]
    device: str
    """Name of the processor."""
    provider: str
    """ONNX Runtime's name of the execution provider."""
    runtime: str
    threads: int
    batch: int
    seed: int
    date: str
    """Time of the measurement in UTC, ISO 8601."""
