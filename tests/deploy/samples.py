"""Small models of one trait each, seeded, for the deploy tests."""

from dataclasses import dataclass

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


class Bag(nn.Module):
    """Flat ids in a vocabulary of 50, and offsets, to (batch, 4)."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(50, 16, mode="mean", **options), nn.Linear(16, 4)

    def forward(self, text: Tensor, offsets: Tensor) -> Tensor:
        return self.head(self.bag(text, offsets))


class TimeFirst(nn.Module):
    """(time, batch, 6) to (time, batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(6, 8), nn.Linear(8, 4)

    def forward(self, steps: Tensor) -> Tensor:
        return self.head(self.cell(steps)[0])


class Sorted(nn.Module):
    """(batch, length) ids and their lengths, longest first, to (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 8), nn.Linear(8, 4)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        tracing = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
        if not tracing and not bool((lengths[:-1] >= lengths[1:]).all()):
            raise ValueError("longest first")
        inside = torch.arange(ids.shape[1]) < lengths[:, None]
        return self.head((self.embedding(ids) * inside[..., None]).sum(1))


class Reader(nn.Module):
    """Tokens and a mask of those that count, by name: (batch, length) twice, to logits (batch, 3) and tokens' features.

    Its output is named as one of its layers and as its input, on purpose.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.linear = nn.Embedding(11, 8), nn.Linear(8, 8)
        self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, scale: float = 1.0) -> dict[str, object]:
        x = self.linear(self.embedding(input_ids)) * scale
        x = x + self.attention(x, x, x, key_padding_mask=~attention_mask, need_weights=False)[0]
        return {"logits": self.head(x.mean(1)), "linear": x, "attention_mask": attention_mask, "caches": [None]}


@dataclass
class Found:
    """A dataclass that PyTorch has never heard of."""

    boxes: Tensor
    scores: tuple[Tensor, Tensor]
    note: str = ""


class Finder(nn.Module):
    """A dict of a list of features to a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.box, self.score = nn.Linear(6, 4), nn.Linear(6, 1)

    def forward(self, features: dict[str, list[Tensor]]) -> Found:
        low, high = features["levels"]
        return Found(self.box(low + high), (self.score(low), self.score(high)))


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


def reading(batch: int = 2, seed: int = 0) -> dict[str, object]:
    """What `Reader` is called with: at least two tokens of each row count."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 11, (batch, 7), generator=generator)
    lengths = torch.randint(2, 7, (batch, 1), generator=generator)
    return {"input_ids": tokens, "attention_mask": torch.arange(7) < lengths, "scale": 0.5}


def residual() -> fx.GraphModule:
    """`Residual`, traced."""
    return fx.symbolic_trace(seeded(Residual))
