"""Overhead of the training loop over a plain one: CPU time per step of tiny networks.

The plain loop has what anybody would write: the same optimizer, clipping, schedule and batches from tensors. Trainings
of both alternate in one process; of each the fastest of all rounds counts. What a training takes to begin and to end is
in it, with one look at the validation data.

    python -m benchmarks.training_speed
"""

import argparse
import datetime
import platform
import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from fxsurgery.training import Recipe, Task, adamw, cosine, fit, sgd
from fxsurgery.training.recipe import OptimizerFactory

SAMPLES = 2048
CLIP = 1.0
OPTIMIZERS: dict[str, OptimizerFactory] = {"sgd": sgd(0.05), "adamw": adamw(1e-3)}


def mlp() -> nn.Module:
    """Two layers."""
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 10))


def conv() -> nn.Module:
    """Two convolutions with batch norms, 8 px."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(16, 10),
    )  # fmt: skip


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {"mlp": (mlp, (32,)), "conv": (conv, (1, 8, 8))}


@dataclass(frozen=True)
class Training:
    """The arguments of both loops."""

    x: Tensor
    y: Tensor
    make: OptimizerFactory
    steps: int
    batch: int


def plain(model: nn.Module, given: Training) -> None:
    """A training loop written by hand."""
    x, y, make, steps, batch = given.x, given.y, given.make, given.steps, given.batch
    optimizer, factor, step = make(model.parameters()), cosine(), 0
    rates = [group["lr"] for group in optimizer.param_groups]
    model.train()
    while step < steps:
        order = torch.randperm(len(x))
        for start in range(0, min(len(x), (steps - step) * batch), batch):
            rows = order[start : start + batch]
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor((step + 0.5) / steps)
            optimizer.zero_grad()
            functional.cross_entropy(model(x[rows]), y[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            step += 1


def ours(model: nn.Module, given: Training) -> None:
    """The same by `fit`, with one validation at the end."""
    x, y, steps, batch = given.x, given.y, given.steps, given.batch
    recipe = Recipe(steps=steps, optimizer=given.make, schedule=cosine(), gradient_clip=CLIP, validations=(steps,))
    fit(model, Task.of((x, y), (x[:batch], y[:batch]), batch_size=batch), recipe, device="cpu")


def main() -> None:
    """Print a row for each network, batch size and optimizer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {platform.processor() or platform.machine()}, ", end="")
    print(f"torch {torch.__version__}, 1 thread: python -m benchmarks.training_speed {shlex.join(sys.argv[1:])}\n")
    print("| network | batch | optimizer | plain, us a step | fit, us a step | ratio |")
    print("|---|---|---|---|---|---|")
    for name, (_, shape) in NETWORKS.items():
        x, y = torch.randn(SAMPLES, *shape), torch.randint(10, (SAMPLES,))
        for batch in (32, 128):
            for optimizer, make in OPTIMIZERS.items():
                by_hand, fitted = measured(
                    NETWORKS[name][0], Training(x, y, make, options.steps, batch), options.rounds
                )
                row = [name, batch, optimizer, f"{by_hand:.0f}", f"{fitted:.0f}", f"{fitted / by_hand:.2f}"]
                print(f"| {' | '.join(map(str, row))} |", flush=True)


def measured(network: Callable[[], nn.Module], given: Training, rounds: int) -> tuple[float, float]:
    """Return the CPU time per step in microseconds, of the plain loop and of `fit`."""
    best = [float("inf")] * 2
    for _ in range(rounds):
        for number, loop in enumerate((plain, ours)):
            model = network()
            began = time.process_time()
            loop(model, given)
            best[number] = min(best[number], (time.process_time() - began) / given.steps * 1e6)
    return best[0], best[1]


if __name__ == "__main__":
    main()
