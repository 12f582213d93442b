"""A dense layer of 32 units shrunk to fewer: naive signs of the singular vectors beside signs chosen on data.

The control prunes units: those that the next layer weighs least.
"""

from collections.abc import Sequence

from torch import Tensor

from benchmarks.data import Splits, fashion_mnist
from benchmarks.passes.pooling import TRAINING, network
from benchmarks.passes.training import accuracy, task_of
from benchmarks.runs import once
from benchmarks.tables import Cell, Table, write
from fxsurgery.analysis.importance import least_important
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.inputs import Inputs
from fxsurgery.passes import PruneChannels, SvdShrink
from fxsurgery.program import Program

RANKS = (32, 28, 24, 20, 16, 12, 8, 4)
EXAMPLES = 512
VARIANTS = {
    "naive signs": {"signs": "as is"},
    "signs on data": {"signs": "data"},
    "whitened": {"signs": "data", "whiten": True},
    "refitted": {"signs": "data", "refit": True},
}
PRUNED = "pruned"


def main(seeds: Sequence[int], images: int) -> None:
    """Shrink the dense layer of the trial's trained networks to each rank, write the table."""
    data = fashion_mnist(train=images)
    runs = [once(f"passes-svd-{TRAINING.epochs:g}-{images}-{seed}", lambda s=seed: _run(s, data)) for seed in seeds]
    rows = list[dict[str, Cell]]()
    for rank in RANKS:
        row: dict[str, Cell] = {"units": rank}
        for name in (*VARIANTS, PRUNED):
            row[name] = [run[f"{name} {rank}"] for run in runs]
            row[f"{name}: accuracy"] = [run[f"{name} {rank} accuracy"] for run in runs]
        rows.append(row)
    names = (*VARIANTS, PRUNED)
    columns = {"units": "d", **dict.fromkeys(names, ".3f"), **{f"{name}: accuracy": ".3f" for name in names}}
    whole = [run["as it is"] for run in runs]
    notes = (
        "The hidden layer (7,056 -> 32, ReLU, 10) of the network of the pooling trial, shrunk to the given number of "
        "units. The first columns: error of the class scores on 2,000 test images, |y' - y| / |y| over all. Then test "
        f"accuracy; the network as it is: {sum(whole) / len(whole):.3f}. Signs, covariances and fits from {EXAMPLES} "
        "training images; `whitened` and `refitted` have signs from data, too. At 32 units no rank is lost: all of the "
        "error is that of ReLU in another basis. `pruned` is the control, `prune-channels` on those units that the "
        "next layer weighs least (L1)."
    )
    print(write(Table("svd-shrink: error against rank", columns, rows, list(seeds), notes), "passes-svd"))


def _run(seed: int, data: Splits) -> dict[str, float]:
    task = task_of(data, 64, seed)
    start = capture(network(seed, task, len(data.train)), data.train.images[:EXAMPLES])
    images = data.test.images[:2000]
    wanted = _scores(start, images)
    found = {"as it is": accuracy(start.trainable_copy(), task)}
    for rank in RANKS:
        moves = {n: SvdShrink(layer="dense", units=rank, **options) for n, options in VARIANTS.items()}
        for name, move in {**moves, PRUNED: _pruning(start, rank)}.items():
            shrunk = move(start).program
            found[f"{name} {rank}"] = float((_scores(shrunk, images) - wanted).norm() / wanted.norm())
            found[f"{name} {rank} accuracy"] = accuracy(shrunk.trainable_copy(), task)
    print(f"seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items() if "accuracy" not in k), flush=True)
    return found


def _scores(program: Program, images: Tensor) -> Tensor:
    (scores,) = program.outputs(Inputs((images,), {}))
    return scores


def _pruning(start: Program, units: int) -> PruneChannels:
    """Remove all but `units` units, first those with the smallest weights in the next layer."""
    group = structure(start).named("dense")
    return PruneChannels((("dense", least_important(start, group, len(group.units) - units)),))
