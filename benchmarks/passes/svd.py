"""A dense layer of 32 units shrunk to fewer: naive signs of the singular vectors beside signs chosen on data."""

from collections.abc import Sequence

from benchmarks.data import Splits, fashion_mnist
from benchmarks.passes.pooling import TRAINING, network
from benchmarks.passes.training import accuracy, task_of
from benchmarks.runs import once
from benchmarks.tables import Cell, Table, write
from fxsurgery.capture import capture
from fxsurgery.passes import SvdShrink

RANKS = (32, 28, 24, 20, 16, 12, 8, 4)
EXAMPLES = 512
VARIANTS = {
    "naive signs": {"signs": "as is"},
    "signs on data": {"signs": "data"},
    "signs on data, whitened": {"signs": "data", "whiten": True},
}


def main(seeds: Sequence[int], images: int) -> None:
    """Shrink the dense layer of the trial's trained networks to each rank, write the table."""
    data = fashion_mnist(train=images)
    runs = [once(f"passes-svd-{TRAINING.epochs:g}-{images}-{seed}", lambda s=seed: _run(s, data)) for seed in seeds]
    rows = list[dict[str, Cell]]()
    for rank in RANKS:
        row: dict[str, Cell] = {"units": rank}
        for name in VARIANTS:
            row[name] = [run[f"{name} {rank}"] for run in runs]
            row[f"{name}: accuracy"] = [run[f"{name} {rank} accuracy"] for run in runs]
        rows.append(row)
    columns = {"units": "d", **dict.fromkeys(VARIANTS, ".3f"), **{f"{name}: accuracy": ".3f" for name in VARIANTS}}
    whole = [run["as it is"] for run in runs]
    notes = (
        "The hidden layer (7,056 -> 32, ReLU, 10) of the network of the pooling trial, shrunk to so many units. The "
        "first three columns: error of the class scores on 2,000 test images, |y' - y| / |y| over all of them. Then "
        f"test accuracy; the network as it is: {sum(whole) / len(whole):.3f}. Signs and covariances from {EXAMPLES} "
        "training images. At 32 units no rank is lost: all of the error is that of ReLU in another basis."
    )
    print(write(Table("svd-shrink: error against rank", columns, rows, list(seeds), notes), "passes-svd"))


def _run(seed: int, data: Splits) -> dict[str, float]:
    task = task_of(data, 64, seed)
    start = capture(network(seed, task, len(data.train)), data.train.images[:EXAMPLES])
    images = data.test.images[:2000]
    wanted = start(images)
    found = {"as it is": accuracy(start.trainable_copy(), task)}
    for rank in RANKS:
        for name, options in VARIANTS.items():
            shrunk = SvdShrink(layer="dense", units=rank, **options)(start).program
            found[f"{name} {rank}"] = float((shrunk(images) - wanted).norm() / wanted.norm())
            found[f"{name} {rank} accuracy"] = accuracy(shrunk.trainable_copy(), task)
    print(f"seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items() if "accuracy" not in k), flush=True)
    return found
