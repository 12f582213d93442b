"""Seconds that a pass takes on ResNet-50, its proof included, in units of a forward pass of the same images."""

import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torchvision.models import resnet50

from benchmarks.passes.accuracy import BEFORE
from benchmarks.tables import Cell, Table, write
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.passes import ALL
from fxsurgery.program import Program

IMAGES = (2, 3, 224, 224)


def main(repeats: int) -> None:
    """Time the first candidate of each pass, in turns; write the table."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model, images = resnet50(weights=None).eval(), torch.randn(IMAGES)
    start = capture(model, images)
    forward = [_timed(start.run_examples) for _ in range(3 + repeats)][3:]
    rows: list[dict[str, Cell]] = [{"what": "forward pass", "seconds": statistics.median(forward), "forwards": 1.0}]
    analysis = [_timed(lambda: structure(replace(start))) for _ in range(repeats)]
    rows.append(_row("structure analysis", analysis, forward, None))
    for name, pass_type in ALL.items():
        program, began = start, time.perf_counter()
        if (move := next(iter(pass_type.candidates(program)), None)) is None and name in BEFORE:
            program = next(iter(ALL[BEFORE[name]].candidates(start)))(start).program
            began = time.perf_counter()
            move = next(iter(pass_type.candidates(program)), None)
        first = time.perf_counter() - began
        if move is None:
            print(f"{name}: nothing to do on ResNet-50", flush=True)
            continue
        # A fresh program each time: what was found out about another one does not count.
        seconds = [_timed(lambda p=fresh, m=move: m(p)) for fresh in _fresh(program, repeats)]  # type: ignore[misc]
        rows.append(_row(f"`{name}`", seconds, forward, first))
        print(f"{name}: {statistics.median(seconds):.2f} s", flush=True)
    columns = {"what": "", "seconds": ".2f", "forwards": ".1f", "first candidate": ".2f"}
    notes = (
        f"ResNet-50 with random weights, {IMAGES[0]} images of {IMAGES[2]} x {IMAGES[3]}; one move of each pass, the "
        f"median of {repeats}. Each includes what analysis it needs and the proof on the examples, at two batch sizes. "
        "`forwards`: over the median forward pass of the same images. `first candidate`: seconds until the pass had "
        "found its first move, the analysis included where it was not known yet. The first layer to remove has stride "
        "2: without it every map is four times as large, and so is the time of each run."
    )
    print(write(Table("Seconds a pass, ResNet-50", columns, rows, [0], notes), "passes-seconds"))


def _fresh(program: Program, repeats: int) -> list[Program]:
    return [replace(program) for _ in range(repeats)]


def _row(what: str, seconds: list[float], forward: list[float], first: float | None) -> dict[str, Cell]:
    middle = statistics.median(seconds)
    return {"what": what, "seconds": middle, "forwards": middle / statistics.median(forward), "first candidate": first}


def _timed(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
