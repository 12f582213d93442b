"""CPU seconds of analysis, rewrite and proof, by model and pass: `python -m benchmarks.pass_speed [model ...]`.

    python -m benchmarks.pass_speed resnet50 mobilenet_v2 --passes fold-bn prune-channels
    python -m benchmarks.pass_speed resnet18 --size 64 --against ../before     beside another checkout, in turns
    python -m benchmarks.pass_speed tiny r20w8 --rival                         beside Torch-Pruning's build and prune

A model is one of torchvision's, without weights, or `tiny` (two convs with norms) or `r20w8` (benchmarks/models.py).
Each figure is the least of the repeats, which other work on the machine disturbs least; one thread.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torchvision
from torch import nn

from benchmarks.models import resnet20
from benchmarks.tables import Cell, Table, header, markdown
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.edit import Editor
from fxsurgery.passes import ALL
from fxsurgery.program import Program
from fxsurgery.surgery import Rewrite

PASSES = ("prune-channels", "fold-bn", "widen", "low-rank")
STEPS = ("analysis", "rewrite", "first proof", "next proof")
Row = dict[str, Cell]
RIVAL = "Torch-Pruning"


def tiny() -> nn.Module:
    """Two convs with norms, and a linear layer."""
    convs = (nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2))
    more = (nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*convs, *more, nn.Linear(32, 10))


OURS: dict[str, Callable[[], nn.Module]] = {"tiny": tiny, "r20w8": lambda: resnet20(in_channels=3)}


def main() -> None:
    """Time the requested passes and print the table."""
    options = _options()
    if options.child:
        json.dump(list(_rows(options)), sys.stdout)
        return
    checkouts = [Path(__file__).parents[1], *([options.against] if options.against else [])]
    rows = list[Row]()
    for model in options.models:
        turns = [[_in_child(checkout, model, options) for checkout in checkouts] for _ in range(options.turns)]
        found = [_least(list(of_one)) for of_one in zip(*turns, strict=True)]
        rows += [_compared(*pair) for pair in zip(*found, strict=True)]
    columns = {"model": "", "pass": "", **dict.fromkeys(STEPS, ".4f"), RIVAL: ".4f"}
    if options.against:
        columns |= {f"{step}, ratio": ".2f" for step in STEPS}
    shown = {name: spec for name, spec in columns.items() if any(row.get(name) is not None for row in rows)}
    notes = (
        f"CPU seconds, {options.batch} inputs of {options.size} x {options.size}, random weights, one thread; the "
        f"first candidate of each pass, the least of {options.turns} times {options.repeats}. `first proof`: of a "
        "program that no pass has run on; `next proof`: of one that passes have run on before. Analysis is that of a "
        f"program that nothing is known of. `{RIVAL}`: its graph, all groups, and a quarter of every width pruned."
    )
    if options.against:
        notes += " Ratios: to the other checkout."
    print(markdown(Table("Speed of passes", shown, rows, [0], notes), header()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="model", default=["resnet50"])
    parser.add_argument("--passes", nargs="+", choices=sorted(ALL), default=PASSES, metavar="pass")
    parser.add_argument("--size", type=int, default=224, help="height and width of the images")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5, help="of each measurement in a process")
    parser.add_argument("--turns", type=int, default=2, help="processes for each checkout and model")
    parser.add_argument("--against", type=Path, help="another checkout of this repository, to compare with")
    parser.add_argument("--rival", action="store_true", help=f"time {RIVAL}, which must be installed, as well")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _in_child(checkout: Path, model: str, options: argparse.Namespace) -> list[Row]:
    """The rows of one model, from a process of its own that imports fxsurgery from `checkout`."""
    command = [sys.executable, str(Path(__file__).resolve()), model, "--child", "--passes", *options.passes]
    for name in ("size", "batch", "repeats"):
        command += [f"--{name}", str(getattr(options, name))]
    if options.rival:
        command.append("--rival")
    paths = [str(checkout.resolve()), str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    rows: list[Row] = json.loads(done.stdout)
    return rows


def _least(turns: list[list[Row]]) -> list[Row]:
    """Return the minimum of each figure over several repeats."""
    found = list[Row]()
    for rows in zip(*turns, strict=True):
        figures = {k: min(row[k] for row in rows) for k, v in rows[0].items() if isinstance(v, float)}  # type: ignore[type-var]
        found.append({**rows[0], **figures})
    return found


def _compared(own: Row, *others: Row) -> Row:
    """A row with its ratios to that of another checkout."""
    ratios: Row = {}
    for other in others:
        for step in STEPS:
            mine, its = own[step], other[step]
            if isinstance(mine, float) and isinstance(its, float):
                ratios[f"{step}, ratio"] = mine / max(its, 1e-9)
    return {**own, **ratios}


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    torch.set_num_threads(1)
    (name,) = options.models
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model = OURS[name]() if name in OURS else torchvision.models.get_model(name, weights=None)
        images = torch.randn(options.batch, 3, options.size, options.size)
    start = capture(model.eval(), images)
    for pass_name in options.passes:
        move = next(iter(ALL[pass_name].candidates(start)), None)
        if move is not None:
            yield {"model": name, "pass": pass_name, **_timed(start, move, options.repeats)}
    if options.rival:
        yield {"model": name, "pass": RIVAL, **dict.fromkeys(STEPS), RIVAL: _rival(model, images, options.repeats)}


def _timed(start: Program, move: Rewrite, repeats: int) -> dict[str, float]:
    """CPU seconds of each step of one pass."""
    fresh = [replace(start) for _ in range(repeats + 1)]
    figures = {"analysis": min(_seconds(lambda p=p: structure(p)) for p in fresh)}  # type: ignore[misc]
    rewrite = min(_seconds(lambda p=p: _rewritten(p, move)) for p in fresh)  # type: ignore[misc]
    first = min(_seconds(lambda p=p: move(p)) for p in fresh)  # type: ignore[misc]
    later = min(_seconds(lambda p=p: move(p)) for p in fresh)  # type: ignore[misc]
    return {**figures, "rewrite": rewrite, "first proof": first - rewrite, "next proof": later - rewrite}


def _rewritten(program: Program, move: Rewrite) -> None:
    edit = Editor(program)
    move.rewrite(edit)
    edit.finish(str(move))


def _rival(model: nn.Module, images: torch.Tensor, repeats: int) -> float:
    """CPU seconds that Torch-Pruning takes for what analysis and rewrite do here."""
    import torch_pruning as tp  # noqa: PLC0415 -- needed for this alone

    def prune(own: nn.Module) -> None:
        importance = tp.importance.MagnitudeImportance(p=2)
        last = [m for m in own.modules() if isinstance(m, nn.Linear)][-1:]
        tp.pruner.BasePruner(own, images, importance=importance, pruning_ratio=0.25, ignored_layers=last).step()

    copies = [copy.deepcopy(model) for _ in range(repeats + 1)]
    return min(_seconds(lambda m=m: prune(m)) for m in copies)  # type: ignore[misc]


def _seconds(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


if __name__ == "__main__":
    main()
