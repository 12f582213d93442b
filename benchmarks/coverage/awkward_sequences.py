"""Awkward nets on sequences: attention in every spelling, recurrence, tied and pooled embeddings."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch
from typing_extensions import override

from benchmarks.coverage.samples import Sample
from fxsurgery.inputs import Inputs

WIDTH, LENGTH, HEADS, SHARED_HEADS, HEAD = 32, 10, 8, 2, 8
WORDS = 50


class GroupedQueries(nn.Module):
    """Eight query heads share two key and value heads by repeat_interleave, in the fused attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.q, self.out = nn.Linear(WIDTH, HEADS * HEAD), nn.Linear(HEADS * HEAD, WIDTH)
        self.k, self.v = nn.Linear(WIDTH, SHARED_HEADS * HEAD), nn.Linear(WIDTH, SHARED_HEADS * HEAD)
        self.head = nn.Linear(WIDTH, 5)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (batch, heads, length, head)."""
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, HEADS, HEAD).transpose(1, 2)
        k = self.k(x).view(batch, length, SHARED_HEADS, HEAD).transpose(1, 2)
        v = self.v(x).view(batch, length, SHARED_HEADS, HEAD).transpose(1, 2)
        return q, k, v

    def shared(self, x: Tensor) -> Tensor:
        """Keys or values, once for each query head."""
        return x.repeat_interleave(HEADS // SHARED_HEADS, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.norm(x))
        y = F.scaled_dot_product_attention(q, self.shared(k), self.shared(v), is_causal=True)
        return self.head(x + self.out(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], HEADS * HEAD)))


class GroupedQueriesExpand(GroupedQueries):
    """The same by expand and reshape."""

    @override
    def shared(self, x: Tensor) -> Tensor:
        batch, heads, length, size = x.shape
        return x[:, :, None].expand(batch, heads, HEADS // heads, length, size).reshape(batch, HEADS, length, size)


class Rotary(GroupedQueries):
    """Rotary positions: the halves of each head turn."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(torch.arange(LENGTH), 0.5 ** torch.arange(HEAD // 2)).repeat(1, 2)
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    @override
    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return self._turned(q), self._turned(k), v

    def _turned(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, -1)
        return x * self.cos + torch.cat([-b, a], -1) * self.sin


class NormedQueries(GroupedQueries):
    """Queries and keys normalized within each head."""

    def __init__(self) -> None:
        super().__init__()
        self.q_norm, self.k_norm = nn.LayerNorm(HEAD), nn.RMSNorm(HEAD)

    @override
    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x)
        return self.q_norm(q), self.k_norm(k), v


class EinsumAttention(nn.Module):
    """Attention, and a projection a head, all by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.q, self.k, self.v = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.mix, self.head = nn.Parameter(torch.randn(4, 8, 8)), nn.Linear(WIDTH, 7)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        q, k, v = (layer(x).unflatten(-1, (4, 8)) for layer in (self.q, self.k, self.v))
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        y = torch.einsum("bhnm,bmhd->bnhd", scores, v)
        return self.head(torch.einsum("bnhd,hde->bnhe", y, self.mix).flatten(2))


class TiedLanguageModel(nn.Module):
    """The output layer is the embedding; torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.attend, self.norm = nn.MultiheadAttention(WIDTH, 4, batch_first=True), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    @override
    def forward(self, words: Tensor) -> Tensor:
        x = self.words(words) + self.places(torch.arange(words.shape[1], device=words.device))
        y = self.norm(x)
        x = x + self.attend(y, y, y, need_weights=False)[0]
        return self.head(x + self.down(F.gelu(self.up(x))))


class EncoderLayers(nn.Module):
    """torch's own transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(WIDTH, 5)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class AttentionDropout(GroupedQueries):
    """Dropout inside the fused attention, by a probability that depends on the mode."""

    @override
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.heads(self.norm(x))
        chance = 0.1 if self.training else 0.0
        y = F.scaled_dot_product_attention(q, self.shared(k), self.shared(v), dropout_p=chance)
        return self.head(self.out(y.transpose(1, 2).flatten(2)))


class Recurrent(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, make: Callable[..., nn.RNNBase], *, layers: int = 1, bidirectional: bool = False) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 24)
        self.memory = make(24, 12, num_layers=layers, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(24 if bidirectional else 12, 3)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.memory(self.stem(x).relu())[0])


class Temporal(nn.Module):
    """Dilated causal 1-D convolutions with gates, residual and skip paths."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(16, 12, 1)
        self.gated = nn.ModuleList(nn.Conv1d(12, 24, 2, dilation=2**i) for i in range(3))
        self.onward = nn.ModuleList(nn.Conv1d(12, 12, 1) for _ in range(3))
        self.skips, self.head = nn.ModuleList(nn.Conv1d(12, 10, 1) for _ in range(3)), nn.Conv1d(10, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x, skipped = self.stem(x.transpose(1, 2)), 0.0
        for gated, onward, skip in zip(self.gated, self.onward, self.skips, strict=True):
            y = F.glu(gated(F.pad(x, (gated.dilation[0], 0))), dim=1)
            x, skipped = x + onward(y), skipped + skip(y)
        return self.head(torch.tanh(skipped))


class Bags(nn.Module):
    """Bags of words, averaged by the embedding itself."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.hidden, self.head = nn.EmbeddingBag(WORDS, 24, mode="mean"), nn.Linear(24, 16), nn.Linear(16, 4)

    @override
    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.hidden(self.bag(words)).relu())


TOKENS = (TiedLanguageModel, Bags)
NETS: dict[str, Callable[[], nn.Module]] = {
    net.__name__: net
    for net in (
        GroupedQueries, GroupedQueriesExpand, Rotary, NormedQueries, EinsumAttention, TiedLanguageModel,
        EncoderLayers, AttentionDropout, Temporal, Bags,
    )
} | {
    "LSTM": functools.partial(Recurrent, nn.LSTM),
    "GRU": functools.partial(Recurrent, nn.GRU, layers=2),
    "BidirectionalLSTM": functools.partial(Recurrent, nn.LSTM, layers=2, bidirectional=True),
}  # fmt: skip


def samples() -> list[Sample]:
    """The nets, in the order of `NETS`."""
    return [Sample(name, functools.partial(_build, make)) for name, make in NETS.items()]


def _build(make: Callable[[], nn.Module]) -> tuple[nn.Module, Inputs]:
    if make in TOKENS:
        return make(), Inputs((torch.randint(0, WORDS, (2, LENGTH)),))
    narrow = isinstance(make, functools.partial) or make is Temporal
    return make(), Inputs((torch.randn(2, LENGTH, 16 if narrow else WIDTH),))
