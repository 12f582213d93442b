"""Shrink a network that predicts a number: the progress of diabetes from a table of ten measurements.

python examples/regression.py
"""

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

import fxsurgery
from fxsurgery import Budget, Dnal
from fxsurgery.training import Task, adamw


class TableNet(nn.Module):
    """Two hidden layers, the second one with a residual connection."""

    def __init__(self, columns: int, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(columns, width), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, columns) -> (batch, 1)."""
        x = self.first(x)
        return self.head(x + self.second(x))


class R2:
    """Fraction of the variance that is explained. It is not a mean over batches, so it collects all of them first."""

    higher_is_better = True

    def __init__(self) -> None:
        self.outputs, self.targets = list[Tensor](), list[Tensor]()

    def update(self, output: Tensor, target: Tensor) -> None:
        """Store a batch."""
        self.outputs.append(output)
        self.targets.append(target)

    def compute(self) -> dict[str, Tensor]:
        """Return both numbers; the first one is selected on."""
        output, target = torch.cat(self.outputs), torch.cat(self.targets)
        r2 = 1 - (output - target).square().mean() / target.var(correction=0)
        return {"R2": r2, "mean error": (output - target).abs().mean()}


def data() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return training and validation data: (samples, 10) measurements, (samples, 1) standardized targets."""
    table, progress = load_diabetes(return_X_y=True)
    order = torch.randperm(len(table), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(table, dtype=torch.float32)[order] * len(table) ** 0.5
    y = torch.tensor(progress, dtype=torch.float32)[order, None]  # (samples, 1), like the output
    y = (y - y[:300].mean()) / y[:300].std()
    return (x[:300], y[:300]), (x[300:], y[300:])


def main(*, quick: bool = False, out: Path = Path("regression.onnx")) -> fxsurgery.Result:
    """Train, shrink to half, export."""
    train, val = data()
    result = fxsurgery.optimize(
        TableNet(columns=10),
        train_data=Task.of(train, val, batch_size=50, loss=nn.MSELoss(), metric=R2(), select="R2"),
        trained=False,  # train it first
        budget=Budget(macs=0.5),
        config=Dnal(optimizer=adamw(1e-3, weight_decay=0.1), fewest_steps=60 if quick else 200),
    )
    print(result.summary())
    print("written:", result.export_onnx(out).path)
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="train for a few steps only")
    parser.add_argument("--out", type=Path, default=Path("regression.onnx"))
    main(**vars(parser.parse_args()))
