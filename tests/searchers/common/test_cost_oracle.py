"""One interface for all costs: counted ones are exact, measured ones are asked of a meter once for each structure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from fxsurgery.analysis.cost import COUNTERS, TERMS, cost
from fxsurgery.analysis.peak_memory import peak_activation_bytes
from fxsurgery.analysis.structure import structure
from fxsurgery.budget import CostEstimate
from fxsurgery.capture import capture
from fxsurgery.errors import BudgetError, RunError
from fxsurgery.program import Program
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.searchers.common.cost_oracle import CostOracle, structural_hash
from nonempty import nonempty
from programs import program
from zoo import ZOO


@dataclass
class Meter:
    """Reads a number and its square; counts its readings."""

    seen: list[Program] = field(default_factory=list)
    readings: int = 2

    def read(self, program: Program) -> Sequence[float]:
        self.seen.append(program)
        return [float(len(self.seen)), cost(program).params]

    def estimate(self, reading: Sequence[float]) -> CostEstimate:
        first, params = reading
        return CostEstimate(value=params, low=params - first, high=params + first)


def linear(inputs: int = 4, outputs: int = 3, *, seed: int = 0, length: int | None = None) -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = (2, inputs) if length is None else (2, length, inputs)
        return capture(nn.Linear(inputs, outputs).eval(), torch.ones(shape))


@pytest.mark.parametrize("name", ZOO)
def test_what_is_counted_is_exact_and_the_sum_of_its_terms(name: str):
    start, oracle = program(name), CostOracle()
    whole = structure(start).mask(torch.zeros(0, dtype=torch.long).numpy())
    for metric in nonempty(COUNTERS):
        found = oracle.cost(start, metric)
        assert found.low == found.value == found.high > 0
        assert metric not in TERMS or TERMS[metric](start).total(whole) == found.value
    assert oracle.cost(start, "params").value == sum(p.numel() for p in start.graph_module.parameters())
    assert oracle.cost(start, "peak_activation_bytes").value == peak_activation_bytes(start)


def test_a_structure_is_measured_once_whatever_its_weights_are():
    meter = Meter()
    oracle = CostOracle(meters={"latency_ms": meter})
    first = oracle.cost(linear(), "latency_ms")
    assert first == CostEstimate(value=15, low=14, high=16)
    assert oracle.cost(linear(seed=1), "latency_ms") == first
    assert len(meter.seen) == 1
    assert oracle.cost(linear(outputs=5), "latency_ms") != first
    assert len(meter.seen) == 2


def test_structures_differ_where_a_cost_may():
    others = [linear(inputs=5), linear(outputs=5), linear(length=3), linear(length=4)]
    others += [capture(nn.Linear(4, 3, bias=False).eval(), torch.ones(2, 4))]
    others += [capture(nn.Linear(4, 3).double().eval(), torch.ones(2, 4, dtype=torch.float64))]
    hashes = [structural_hash(one) for one in (linear(), *others)]
    assert len(set(hashes)) == len(hashes)
    assert structural_hash(linear()) == structural_hash(linear(seed=1))


def test_what_has_no_meter_is_refused():
    with pytest.raises(BudgetError, match=r"latency_ms is measured and has no device.*target='local'"):
        CostOracle().cost(linear(), "latency_ms")


@dataclass
class LayerTable:
    """Adds up what the layers take, each measured once, by its text."""

    table: dict[str, float] = field(default_factory=dict)
    readings: int = 1

    def read(self, program: Program) -> Sequence[float]:
        layers = [repr(layer) for _, layer in program.calls(nn.Module)]
        for layer in layers:
            self.table.setdefault(layer, 1.0 + len(self.table))
        return [sum(self.table[layer] for layer in layers)]

    def estimate(self, reading: Sequence[float]) -> CostEstimate:
        return CostEstimate.exactly(*reading)


def test_a_table_of_layers_is_a_meter_like_any_other():
    meter = LayerTable()
    oracle = CostOracle(meters={"latency_ms": meter})
    deep = capture(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)).eval(), torch.ones(2, 4))
    short = capture(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).eval(), torch.ones(2, 4))
    assert oracle.cost(deep, "latency_ms").value == 1 + 2 + 1 + 3
    assert oracle.cost(short, "latency_ms").value == 1 + 3
    assert len(meter.table) == 3


def asked(folder: Path, meter: Meter, *programs: Program, resume: bool = True) -> list[CostEstimate]:
    with RunDir.open(folder, {}, resume=resume) as run:
        oracle = CostOracle(meters={"latency_ms": meter}, run=run)
        return [oracle.cost(one, "latency_ms") for one in programs]


def test_a_resumed_run_recalls_what_was_measured(tmp_path: Path):
    first = asked(tmp_path, Meter(), linear(), linear(outputs=5), resume=False)
    (tmp_path / "stages").mkdir(exist_ok=True)
    (tmp_path / "stages" / "001-x.partial").touch()
    meter = Meter()
    assert asked(tmp_path, meter, linear(seed=1), linear(outputs=5), linear()) == [*first, first[0]]
    assert meter.seen == []


@pytest.mark.parametrize(("another", "said"), [(linear(outputs=7), "model wrote it"), (None, "not of its type")])
def test_a_journal_of_another_program_or_meter_is_refused(tmp_path: Path, another: Program | None, said: str):
    asked(tmp_path, Meter(), linear(), resume=False)
    (tmp_path / "stages").mkdir(exist_ok=True)
    (tmp_path / "stages" / "001-x.partial").touch()
    meter = Meter() if another is not None else Meter(readings=3)
    with pytest.raises(RunError, match=said):
        asked(tmp_path, meter, another or linear())
