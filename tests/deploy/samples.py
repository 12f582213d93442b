"""Small models of one trait each, seeded, for the deploy tests."""

import torch
from torch import Tensor, fx, nn

from zoo import lively


class Residual(nn.Module):
    """Conv, BatchNorm, a residual, dropout, pooling and a head: (batch, 3, 8, 8) to (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.relu(x + self.block(x))
        return self.head(self.drop(x.mean((2, 3))))


class TwoInputs(nn.Module):
    """Two batched inputs to a tuple of two outputs: (batch, 4), (batch, 6) to (batch, 5), (batch, 6)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 5), nn.Linear(6, 5)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.a(x) + self.b(y), torch.tanh(y)


class IgnoresFirst(nn.Module):
    """Two inputs, of which the first is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Linear(6, 5)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.b(y)


class Tokens(nn.Module):
    """Integers in a vocabulary of 11: (batch, length) to (batch, 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(11, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embedding(tokens).mean(1))


class FixedBatch(nn.Module):
    """A model that works on two samples only."""

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, 12).sigmoid()


class Constant(nn.Module):
    """An output that does not depend on the input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0.0 + 1.0


class HardToTrace(nn.Module):
    """A Python branch on a value: no symbolic exporter takes it."""

    def forward(self, x: Tensor) -> Tensor:
        return x.exp() if float(x.sum()) > -1e9 else x.sin()


def seeded(build: type[nn.Module], seed: int = 0) -> nn.Module:
    """A lively model in eval mode; the global random state stays as it was."""
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        return lively(build(), seed).eval()


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def residual() -> fx.GraphModule:
    """`Residual`, traced."""
    return fx.symbolic_trace(seeded(Residual))
