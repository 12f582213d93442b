"""One model under one tool, in a process of its own: `python -m benchmarks.coverage.child MODEL TOOL --out ROW`.

Libraries are imported, the tool has run on a tiny net and the model is built before the limit counts.
"""

import argparse
import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
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


def main() -> None:
    """Run, and leave the row in a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ratio", type=float, default=0.3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    journal = Journal(Row(options.model, options.tool), options.out, options.limit)
    with _quiet():
        cover(journal, ratio=options.ratio, seed=options.seed)


def cover(journal: Journal, *, ratio: float, seed: int) -> None:
    """Build the journal's model and take it through its tool."""
    sample = named(journal.row.model)
    _use(Journal(Row("", journal.row.tool)), _tiny(), Inputs((torch.randn(1, 3, 8, 8),)), ratio, seed)
    journal.arm()
    try:
        with journal.stage("model"):
            model, inputs = sample.example(seed)
            with torch.no_grad():
                model(*inputs.clone().args, **inputs.clone().kwargs)
    except Exception as error:  # noqa: BLE001 - it is the answer
        journal.end("unbuilt", first_line(error))
        return
    _use(journal, model, inputs, ratio, seed, exported=sample.exported)


def _use(
    journal: Journal, model: nn.Module, inputs: Inputs, ratio: float, seed: int, *, exported: bool = False
) -> None:
    tool = importlib.import_module(TOOLS[journal.row.tool])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 -- the rivals, and dropout, draw from the global generator only
        if journal.row.tool == "fxsurgery":
            tool.run(journal, model, inputs, tool.Removal(ratio, seed, exported))
        else:
            tool.run(journal, model, inputs, ratio)


def _tiny() -> nn.Module:
    """What each tool runs on first, so that what libraries import on first use counts for none."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Models and exporters print as they please; the row is what counts."""
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


if __name__ == "__main__":
    main()
