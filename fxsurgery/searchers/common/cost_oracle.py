"""One interface to the cost of a program, in any metric.

Counted metrics (parameters, MACs, peak activation memory) are facts of the program and exact. A measured one, such as
the latency on a target, comes from the meter of that metric: once for each structure, with the bounds of its 95 %
interval. Each reading is written to the journal under the hash of the structure, so a resumed run recalls it.

A meter may be anything that gives plain numbers for a program: a timer that runs it, or a table of what each of its
layers takes.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from fxsurgery.analysis.cost import COUNTERS
from fxsurgery.argument_names import assigned
from fxsurgery.budget import CostEstimate, Metric
from fxsurgery.errors import BudgetError
from fxsurgery.program import Program
from fxsurgery.runs.records import are_amounts
from fxsurgery.runs.run_directory import RunDir


class CostMeter(Protocol):
    """Measures one metric."""

    readings: int
    """Number of values that a reading has."""

    def read(self, program: Program) -> Sequence[float]:
        """Measure a program; the values are kept in the journal."""

    def estimate(self, reading: Sequence[float]) -> CostEstimate:
        """Return the cost that a reading, new or recalled, represents."""


@dataclass(eq=False, kw_only=True)
class CostOracle:
    """Returns the cost of programs, measuring each structure once.

    Example:
        >>> import torch
        >>> from fxsurgery import capture
        >>> program = capture(torch.nn.Linear(4, 2).eval(), torch.ones(1, 4))
        >>> CostOracle().cost(program, "macs")
        CostEstimate(value=8, low=8, high=8)
    """

    meters: Mapping[Metric, CostMeter] = field(default_factory=dict)
    """The meter of each measured metric."""
    run: RunDir = field(default_factory=RunDir)
    """The run whose journal recalls earlier readings."""
    _known: dict[tuple[Metric, str], CostEstimate] = field(default_factory=dict, repr=False)

    def cost(self, program: Program, metric: Metric) -> CostEstimate:
        """Return the cost of a program in one metric.

        Raises:
            BudgetError: the metric is measured and has no meter.
            ExportError: the meter cannot export the program.
            DeviceError: the meter's target cannot run it.
        """
        if (count := COUNTERS.get(metric)) is not None:
            return CostEstimate.exactly(count(program))
        meter = self.meters.get(metric)
        if meter is None:
            raise BudgetError(
                f"{metric} is measured and has no device to measure on; pass {assigned('target', 'local')}"
            )
        key = metric, structural_hash(program)
        if key not in self._known:
            name = f"{metric} of {key[1][:16]}"
            reading = self.run.recall(name, lambda: list(meter.read(program)), are_amounts(meter.readings))
            self._known[key] = meter.estimate(reading)
        return self._known[key]


def structural_hash(program: Program) -> str:
    """Return a hash of all that a cost depends on: the graph, and the shapes and dtypes of its tensors and inputs.

    Programs that differ only in the values of their weights have the same hash.
    """
    model = program.graph_module
    tensors = [(name, tuple(x.shape), x.dtype) for name, x in (*model.named_parameters(), *model.named_buffers())]
    inputs = [(tuple(x.shape), x.dtype) for x in program.examples.tensors]
    return hashlib.sha256(f"{program.text()}{tensors}{inputs}".encode()).hexdigest()
