"""Side-by-side latency of programs on a target: exported alike, interleaved in one process.

Both are written by the same exporter, so that the ratio is that of the models and not that of two exporters. The file
takes any batch size and is measured on one sample; of a program that takes its example batch alone, on that batch.
"""

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fxsurgery.calls import checked_construction
from fxsurgery.deploy.determinism import repeat_gap
from fxsurgery.deploy.export_step import Exporter
from fxsurgery.deploy.kept_exports import EXPORTS
from fxsurgery.deploy.latency_report import LatencyReport
from fxsurgery.deploy.model_source import frozen_copy, frozen_inputs, outputs_of
from fxsurgery.deploy.onnx_model import OnnxModel
from fxsurgery.deploy.targets import Target, compare_on, resolve_target
from fxsurgery.errors import DeviceError, ExportError
from fxsurgery.option_types import checked
from fxsurgery.program import Program

ORIGINAL, CANDIDATE = "original", "candidate"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Effort of a measurement."""

    rounds: int
    seconds: float
    exporters: Sequence[Exporter]
    """Exporters in the order in which they are tried."""
    wide: float = 0.1
    """Width of the 95 % interval, relative to the ratio, above which the measurement is repeated with more time."""


QUICK = Pace(rounds=200, seconds=3.0, exporters=("legacy", "dynamo"))
"""For the many networks of a search."""
THOROUGH = Pace(rounds=1000, seconds=10.0, exporters=("dynamo", "legacy"))
"""For the network that is returned; exported like the user's file."""
GLANCE = Pace(rounds=30, seconds=1.0, exporters=("legacy", "dynamo"), wide=math.inf)
"""For a rough figure to show the user."""

LONGER = 3
"""Factor of the time of a repeated measurement."""

Write = Callable[[str, Program, Exporter, bool], OnnxModel]
"""`write(name, program, exporter, dynamic)` exports a program, with a dynamic batch or without."""


@checked_construction
@dataclass(eq=False)
class Timer:
    """Measures the latency of programs relative to an original on a target."""

    target: Target
    original: Program
    seed: int = 0
    quick: Pace = QUICK
    thorough: Pace = THOROUGH

    @cached_property
    def original_latency(self) -> tuple[float, int]:
        """Median latency of the original in milliseconds over several loadings, and the batch size of the measurement.

        Raises:
            DeviceError: the target cannot run it.
            ExportError: it cannot be exported.
        """
        report = self._compared({ORIGINAL: self.original}, self.thorough)
        return report[ORIGINAL].p50_ms, report.batch

    def ratio(self, program: Program, *, thorough: bool) -> tuple[float, float, float]:
        """Return the latency of a program divided by that of the original, with the bounds of its 95 % interval.

        Raises:
            DeviceError: the target cannot run it.
            ExportError: it cannot be exported.
        """
        programs = {ORIGINAL: self.original, CANDIDATE: program}
        pace = self.thorough if thorough else self.quick
        found = self._compared(programs, pace)[CANDIDATE]
        if found.ratio_high - found.ratio_low > pace.wide * found.ratio:
            longer = replace(pace, rounds=LONGER * pace.rounds, seconds=LONGER * pace.seconds)
            found = self._compared(programs, longer)[CANDIDATE]
        return found.ratio, found.ratio_low, found.ratio_high

    def _compared(self, programs: Mapping[str, Program], pace: Pace) -> LatencyReport:
        with tempfile.TemporaryDirectory(prefix="fxsurgery-") as folder:

            def write(name: str, program: Program, exporter: Exporter, dynamic: bool) -> OnnxModel:  # noqa: FBT001
                path = Path(folder) / f"{name}.onnx"
                return EXPORTS.export(program, path, exporter=exporter, dynamic_batch=dynamic, check=False)

            options = {"rounds": pace.rounds, "seconds": pace.seconds, "seed": self.seed}
            return _first_that_runs(programs, pace.exporters, write, self.target, options)


@checked(DeviceError)
def compare_programs(programs: Mapping[str, Program], device: str, options: Mapping[str, Any]) -> LatencyReport:
    """Measure programs side by side on one sample, each checked against PyTorch; the first is the baseline.

    A program that draws random numbers is measured without the check, which it cannot pass.

    Args:
        programs: by name.
        device: a target.
        options: as of `fxsurgery.deploy.compare_latency`.

    Raises:
        DeviceError: there is no such target, an option is out of range, or it cannot run the model.
        ExportError: one of them cannot be exported.
    """
    target = resolve_target(device)
    target.plan(**options)
    with tempfile.TemporaryDirectory(prefix="fxsurgery-") as folder:

        def write(name: str, program: Program, exporter: Exporter, dynamic: bool) -> OnnxModel:  # noqa: FBT001
            path = Path(folder) / f"{name}.onnx"
            checked = not _draws(program)
            return EXPORTS.export(program, path, exporter=exporter, dynamic_batch=dynamic, check=checked)

        return _first_that_runs(programs, THOROUGH.exporters, write, target, options)


def _first_that_runs(
    programs: Mapping[str, Program],
    exporters: Sequence[Exporter],
    write: Write,
    target: Target,
    options: Mapping[str, Any],
) -> LatencyReport:
    """Measure with the first exporter that can export all programs, with a dynamic batch before a fixed one.

    Raises:
        ExportError: none does; the reasons of each, with a free batch.
    """
    reasons, last = list[str](), None
    is_resizable = all(program.examples.is_resizable for program in programs.values())
    for dynamic in (True, False) if is_resizable else (False,):
        for exporter in exporters:
            try:
                files = {name: write(name, program, exporter, dynamic) for name, program in programs.items()}
                examples = next(iter(programs.values())).examples
                return compare_on(target, files, examples.resized(1) if dynamic else examples, **options)
            except ExportError as error:
                last = error
                if dynamic or not is_resizable:
                    reasons.append(str(error))
    raise ExportError(" | ".join(dict.fromkeys(reasons))) from last


def _draws(program: Program) -> bool:
    """Return True if a program draws random numbers that affect its outputs."""
    model = frozen_copy(program.graph_module)
    inputs = frozen_inputs(model, program.examples, None)
    return repeat_gap(lambda: outputs_of(model, inputs)) > 0
