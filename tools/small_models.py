"""The networks of the pages: small enough to draw, each with a trait that the others lack.

The pages show their source. All take images of (batch, 3, 12, 12).
"""

import torch
from torch import nn


class Plain(nn.Module):
    """Two convolutions with norms, pooling, and a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        )  # fmt: skip
        self.dense, self.head = nn.Linear(12 * 6 * 6, 16), nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 12, 12) -> (batch, 10)."""
        return self.head(self.dense(self.body(x).flatten(1)).relu())


class Residual(nn.Module):
    """A residual block with an identity shortcut: the summed channels live and die together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(8, 6, 5, padding=2), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 12, 12) -> (batch, 10)."""
        x = self.stem(x).relu()
        x = (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()
        return self.head(x.mean((2, 3)))


class Branches(nn.Module):
    """A wide convolution, and two branches of other kernels that are summed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, padding=2)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, 3, 12, 12) -> (batch, 10)."""
        x = self.stem(x).relu()
        return self.head((self.left(x) + self.right(x)).relu().mean((2, 3)))


MODELS = (Plain, Residual, Branches)
