"""ECToNAS's pooling trial (Schiessler et al., appendix A.2.1, Table 4), on Fashion-MNIST.

Two convolutions, then two dense layers, trained; a 2x2 pool goes in between the convolutions, and the weights of
the first dense layer are aggregated, or cut at random.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from benchmarks.data import Splits, fashion_mnist
from benchmarks.passes.training import Training, after, task_of, trained
from benchmarks.runs import once
from benchmarks.tables import Cell, Table, write
from fxsurgery import Task
from fxsurgery.capture import capture
from fxsurgery.passes import AddPool
from fxsurgery.training import cosine

TRAINING = Training(epochs=4, learning_rate=0.02)
FINETUNE = Training(epochs=1, learning_rate=0.005)
PUBLISHED = {"average": "mean", "max": "maximum"}
"""Aggregate the weights as the paper's code does."""
ROWS = [(k, w) for k, published in PUBLISHED.items() for w in ("structured", published, "largest", "random")]


class Minimal(nn.Module):
    """(batch, 1, 28, 28) -> (batch, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(6, 9, 3, padding=1)
        self.dense, self.head = nn.Linear(9 * 28 * 28, 32), nn.Linear(32, 10)

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Class scores."""
        x = self.conv2(self.conv1(x).relu()).relu()
        return self.head(self.dense(x.flatten(1)).relu())


def network(seed: int, task: Task, images: int) -> nn.Module:
    """Return a trained network."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = Minimal()
    key = f"passes-minimal-{TRAINING.epochs:g}-{images}-{seed}"
    return trained(model, key, task, TRAINING, seed=seed, schedule=cosine())


def main(seeds: Sequence[int], images: int) -> None:
    """Train a network for each seed, insert each kind of pool, write the table."""
    data = fashion_mnist(train=images)
    runs = [once(f"passes-pooling-{TRAINING.epochs:g}-{images}-{seed}", lambda s=seed: _run(s, data)) for seed in seeds]
    rows: list[dict[str, Cell]] = [{"pool": "none", "one epoch later": None, "right after": _of(runs, "as it is")}]
    for kind, weights in ROWS:
        name = f"{kind} {weights}"
        later = _of(runs, f"{name} later")
        rows.append({"pool": kind, "weights": weights, "right after": _of(runs, name), "one epoch later": later})
    columns = {"pool": "", "weights": "", "right after": ".3f", "one epoch later": ".3f"}
    notes = (
        f"Test accuracy; {TRAINING.epochs:g} epochs of {images:,} images, a 2x2 pool after the first convolution's "
        "ReLU. A pooled position takes of the weights that it stands for: `structured` their sum; `mean` and "
        "`maximum`, as the paper's published code has it for average and max pools; `largest` that of largest absolute "
        "value; `random` one at random. The paper's figures, on MNIST: average pools 89.1 % (`mean`) and 53.8 % "
        "(random), after one epoch 96.0 % and 95.6 %; max pools 13.4 % (`maximum`) and 49.3 %, after one epoch 29.7 % "
        "and 95.0 %."
    )
    print(write(Table("A pool inserted into a trained network", columns, rows, list(seeds), notes), "passes-pooling"))


def _run(seed: int, data: Splits) -> dict[str, float]:
    task = task_of(data, 64, seed)
    start = capture(network(seed, task, len(data.train)), data.train.images[:64])
    relu = next(n.name for n in start.nodes if "relu" in n.name)
    found = {"as it is": after(start, task, Training(0, 0.1))[0]}
    for kind, weights in ROWS:
        result = AddPool(after=relu, kind=kind, weights=weights, seed=seed)(start)
        name = f"{kind} {weights}"
        found[name], found[f"{name} later"] = after(result.program, task, FINETUNE, seed)
    print(f"seed {seed}: " + ", ".join(f"{k} {v:.3f}" for k, v in found.items()), flush=True)
    return found


def _of(runs: Sequence[dict[str, float]], name: str) -> list[float]:
    return [run[name] for run in runs]
