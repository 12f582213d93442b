"""One model under one tool, in a process of its own.

Libraries are imported, the tool has run on a tiny net and the model is built before the limit counts.
"""

import contextlib
import gc
import importlib
import os
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import nn

from benchmarks.coverage.record import Journal, Row, first_line
from benchmarks.coverage.samples import named
from fxsurgery.inputs import Inputs

TOOLS = {
    "fxsurgery": "benchmarks.coverage.ours",
    "torch-pruning": "benchmarks.coverage.rival_torch_pruning",
    "torch-kirigami": "benchmarks.coverage.rival_kirigami",
}


def prepare(tools: Iterable[str]) -> None:
    """Import what models and tools need, and run each tool on a tiny net, so that first use is not measured."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with _quiet():
        for tool in sorted(tools):
            _use(Journal(Row("", tool)), _tiny(), Inputs((torch.randn(1, 3, 8, 8),)), 0.3, 0)
    _leave_to_the_past()


def cover(journal: Journal, *, ratio: float, seed: int) -> None:
    """Build the journal's model and run its tool on it."""
    sample = named(journal.row.model)
    journal.arm()
    try:
        with _quiet(), journal.stage("model"):
            model, inputs = sample.example(seed)
            with torch.no_grad():
                model(*inputs.clone().args, **inputs.clone().kwargs)
    except Exception as error:  # noqa: BLE001 - it is the answer
        journal.end("unbuilt", first_line(error))
        return
    _leave_to_the_past()
    with _quiet():
        _use(journal, model, inputs, ratio, seed, exported=sample.exported)


def _use(
    journal: Journal, model: nn.Module, inputs: Inputs, ratio: float, seed: int, *, exported: bool = False
) -> None:
    tool = importlib.import_module(TOOLS[journal.row.tool])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 -- the rivals, and dropout, draw from the global generator only
        ours = journal.row.tool == "fxsurgery"
        try:
            tool.run(journal, model, inputs, tool.Removal(ratio, seed, exported) if ours else ratio)
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is this model's verdict
            stage = journal.row.stage
            journal.end(tool.verdict(error, stage) if ours else "failed", f"{stage}: {first_line(error)}")


def _leave_to_the_past() -> None:
    """Collect garbage now, so that no later stage pays for the objects of an earlier one."""
    gc.collect()
    gc.freeze()


def _tiny() -> nn.Module:
    """A tiny net that each tool runs on first, so that imports on first use are not measured."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Models and exporters print as they please; the row is what counts."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
