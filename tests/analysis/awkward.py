"""Small networks that are hard to cut, each with the number of units that are free to go on their own.

The counts are worked out by hand: a smaller one means that something is tied that need not be, a larger one
that something is not tied that must be.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

WIDTH, HEADS, HEAD_DIM, TOKENS = 16, 4, 10, 6


def rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([-second, first], -1)


class Attention(nn.Module):
    """Grouped-query attention with rotary embeddings on a residual stream, then a feed-forward layer."""

    def __init__(self, kv_heads: int = HEADS, *, rotary: bool = False, fused: bool = True, repeat: str = "") -> None:
        super().__init__()
        self.kv_heads, self.rotary, self.fused, self.repeat = kv_heads, rotary, fused, repeat
        self.embed, self.norm = nn.Linear(5, WIDTH), nn.LayerNorm(WIDTH)
        self.q = nn.Linear(WIDTH, HEADS * HEAD_DIM)
        self.k, self.v = nn.Linear(WIDTH, kv_heads * HEAD_DIM), nn.Linear(WIDTH, kv_heads * HEAD_DIM)
        self.out = nn.Linear(HEADS * HEAD_DIM, WIDTH)
        self.up, self.down, self.head = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH), nn.Linear(WIDTH, 3)
        if rotary:
            angle = torch.arange(TOKENS)[:, None] * torch.linspace(1, 0.1, HEAD_DIM // 2).repeat(2)
            self.register_buffer("cos", angle.cos())
            self.register_buffer("sin", angle.sin())

    def heads(self, x: Tensor, count: int) -> Tensor:
        return x.view(x.shape[0], x.shape[1], count, HEAD_DIM).transpose(1, 2)

    def widened(self, x: Tensor) -> Tensor:
        if self.repeat == "expand":
            b, h, n, d = x.shape
            return x[:, :, None].expand(b, h, HEADS // h, n, d).reshape(b, HEADS, n, d)
        return x.repeat_interleave(HEADS // self.kv_heads, 1) if self.repeat else x

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        q, k, v = (
            self.heads(self.q(y), HEADS),
            self.heads(self.k(y), self.kv_heads),
            self.heads(self.v(y), self.kv_heads),
        )
        if self.rotary:
            q, k = (t * self.cos + rotate_half(t) * self.sin for t in (q, k))
        k, v = self.widened(k), self.widened(v)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = torch.softmax(q @ k.transpose(-2, -1) / HEAD_DIM**0.5, -1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(x.shape[0], TOKENS, HEADS * HEAD_DIM))
        return self.head(x + self.down(F.gelu(self.up(x))))


class OneKeyHead(Attention):
    """Multi-query attention: the single value head can lose channels, the same of each query head's output."""

    def __init__(self) -> None:
        super().__init__(1, fused=False)


class QueryKeyNorm(nn.Module):
    """A norm over each head's channels."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3 * HEADS * HEAD_DIM)
        self.qn, self.kn = nn.LayerNorm(HEAD_DIM), nn.RMSNorm(HEAD_DIM)
        self.out, self.head = nn.Linear(HEADS * HEAD_DIM, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.embed(x)).chunk(3, -1)
        q, k, v = (qkv[i].view(x.shape[0], TOKENS, HEADS, HEAD_DIM) for i in range(3))
        y = F.scaled_dot_product_attention(self.qn(q).transpose(1, 2), self.kn(k).transpose(1, 2), v.transpose(1, 2))
        return self.head(self.out(y.transpose(1, 2).flatten(2)))


class PackedAttention(nn.Module):
    """One projection for queries, keys and values, split as vision transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(5, WIDTH), nn.Linear(WIDTH, 3 * HEADS * HEAD_DIM)
        self.out, self.head = nn.Linear(HEADS * HEAD_DIM, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, HEADS, HEAD_DIM).permute(2, 0, 3, 1, 4).unbind(0)
        y = ((q * HEAD_DIM**-0.5) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.head(x + self.out(y.transpose(1, 2).reshape(b, n, -1)))


class FoldedHeads(PackedAttention):
    """Heads folded into the batch, as older code does."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        qkv = self.qkv(x).chunk(3, -1)
        q, k, v = (qkv[i].view(b, n, HEADS, HEAD_DIM).transpose(1, 2).reshape(b * HEADS, n, HEAD_DIM) for i in range(3))
        y = torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        y = y.view(b, HEADS, n, HEAD_DIM).transpose(1, 2).reshape(b, n, HEADS * HEAD_DIM)
        return self.head(x + self.out(y))


class EinsumAttention(PackedAttention):
    """The same in einsum, with a mixing weight of its own for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(HEADS, HEAD_DIM, 5) * 0.2)
        self.out = nn.Linear(HEADS * 5, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        qkv = self.qkv(x).chunk(3, -1)
        q, k, v = (qkv[i].view(b, n, HEADS, HEAD_DIM) for i in range(3))
        a = torch.einsum("bnhd,bmhd->bhnm", q, k).softmax(-1)
        y = torch.einsum("bnhd,hde->bnhe", torch.einsum("bhnm,bmhd->bnhd", a, v), self.mix)
        return self.head(x + self.out(y.flatten(2)))


class TiedLanguageModel(nn.Module):
    """Token and position embeddings; the head's weight is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(20, WIDTH), nn.Embedding(TOKENS, WIDTH)
        self.norm, self.up, self.down = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)
        self.head = nn.Linear(WIDTH, 20, bias=False)
        self.head.weight = self.tokens.weight
        self.register_buffer("places", torch.arange(TOKENS))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.tokens(ids) + self.positions(self.places)
        return self.head(x + self.down(F.gelu(self.up(self.norm(x)))))


class ShuffleUnits(nn.Module):
    """Grouped convolutions around a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 36, 3, padding=1, groups=3)
        self.c, self.d = nn.Conv2d(36, 18, 3, padding=1, groups=2), nn.Conv2d(18, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).relu()).relu()
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.d(self.c(x).relu())


class PixelShuffles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 1), nn.Conv2d(8, 6, 3, padding=1)
        self.d, self.e = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.b(self.a(x).relu()), 2)
        return self.e(self.d(F.pixel_unshuffle(self.c(x.relu()).relu(), 2)))


class Decoder(nn.Module):
    """Flatten, a bottleneck, and transposed convolutions back, the second in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.f, self.g = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8 * 16, 32), nn.Linear(32, 12 * 16)
        self.d, self.e = nn.ConvTranspose2d(12, 8, 2, 2), nn.ConvTranspose2d(8, 8, 2, 2, groups=4)
        self.h = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.g(self.f(self.a(x).relu().flatten(1)).relu()).view(-1, 12, 4, 4)
        return self.h(self.e(self.d(x.relu()).relu()))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 3, 2, 1)
        self.up, self.merge, self.head = (
            nn.ConvTranspose2d(16, 8, 2, 2),
            nn.Conv2d(16, 8, 3, padding=1),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        skip = self.a(x).relu()
        return self.head(self.merge(torch.cat([self.up(self.b(skip).relu()), skip], 1)).relu())


class Recurrent(nn.Module):
    def __init__(self, layer: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.a, self.layer = nn.Linear(5, 12), layer(12, 10, batch_first=True, **options)
        self.o = nn.Linear(options.get("proj_size", 20 if options.get("bidirectional") else 10), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.layer(self.a(x))[0])


class LastState(nn.Module):
    """Reads the final hidden state of the last layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.o = nn.LSTM(5, 10, 2, batch_first=True), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(self.layer(x)[1][0][-1])


class WeightNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        normed = nn.utils.parametrizations.weight_norm
        self.a, self.b = normed(nn.Conv2d(3, 8, 3)), normed(nn.Conv2d(8, 6, 3))
        self.c = normed(nn.Linear(6, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu().mean((2, 3)))


class SpectralNormed(nn.Module):
    """What a spectral norm is taken of keeps its width, and the channels that flow in as well."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 6, 1))
        self.c, self.d = nn.Conv2d(6, 7, 1), nn.Conv2d(7, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(self.c(self.b(self.a(x)).relu()).relu())


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.n, self.b = nn.Conv3d(2, 6, 3, padding=1), nn.BatchNorm3d(6), nn.Conv3d(6, 4, 3)
        self.up, self.h = nn.ConvTranspose3d(4, 5, 2, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.up(self.b(self.n(self.a(x)).relu())).relu().mean((2, 3, 4)))


class Wave(nn.Module):
    """1-D convolutions, gated linear units, a shared layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.shared, self.b = nn.Conv1d(2, 16, 5), nn.Conv1d(8, 8, 3, padding=1), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.glu(self.a(x), 1)
        return self.b(self.shared(self.shared(x).relu()))


class ChannelMoves(nn.Module):
    """Strided slices, a roll and a flip of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 12, 1), nn.Conv2d(6, 4, 1)
        self.d, self.e, self.f = nn.Conv2d(12, 4, 1), nn.Conv2d(12, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        y = self.c(a[:, ::2].relu()) + self.d(torch.roll(b, 3, 1).relu()) + self.e(b.flip(1).sigmoid())
        return self.f(y)


class ChannelAttention(nn.Module):
    """ECA: a convolution over the channels; neighbors change with each removal."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.eca, self.b = nn.Conv2d(3, 12, 1), nn.Conv1d(1, 1, 3, padding=1), nn.Conv2d(12, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        gate = self.eca(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid()
        return self.b(x * gate)


class SelectiveKernel(nn.Module):
    """Two branches weighted by a softmax between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc, self.o = (
            nn.Conv2d(3, 8, 1),
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Linear(8, 16),
            nn.Conv2d(8, 2, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = torch.stack([self.a(x), self.b(x)], 1)
        weight = self.fc(y.sum(1).mean((2, 3))).view(-1, 2, 8).softmax(1)
        return self.o((y * weight[..., None, None]).sum(1))


class StandardizedConv(nn.Module):
    """Weights standardized by a batch norm over them, as normalizer-free nets do; functional groups and norms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 12, 3, padding=1), nn.Conv2d(12, 2, 1)
        self.gain = nn.Parameter(torch.rand(12, 1, 1, 1) + 0.5)
        self.kernel, self.scale = nn.Parameter(torch.randn(12, 1, 3, 3)), nn.Parameter(torch.rand(12) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        weight = F.batch_norm(self.b.weight.reshape(1, 12, -1), None, None, self.gain.view(-1), training=True)
        x = F.conv2d(x, weight.reshape_as(self.b.weight), self.b.bias, 1, 1)
        x = F.conv2d(x, self.kernel, padding=1, groups=12)
        x = F.layer_norm(x.permute(0, 2, 3, 1), (12,), self.scale).permute(0, 3, 1, 2)
        return self.c(F.group_norm(x, 1))


class FoldedGroups(nn.Module):
    """Channel groups folded into the batch (shuffle attention)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(3, 16, 1), nn.BatchNorm2d(4), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        b, c, h, w = x.shape
        y = self.norm(x.view(b * 4, c // 4, h, w)).relu()
        return self.b(y.view(b, c, h, w))


class LearnedQueries(nn.Module):
    """The stream starts from a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.up, self.down = nn.Parameter(torch.randn(1, 5, 8)), nn.Linear(8, 12), nn.Linear(12, 3)
        self.gate = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(self.queries.expand(x.shape[0], -1, -1)).relu()) * self.gate(x).unsqueeze(1)


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(5))


SEQUENCE, IMAGE = image(2, TOKENS, 5), image(2, 3, 8, 8)
STREAM, FEED = WIDTH, 24
AWKWARD = {
    "attention": (Attention, SEQUENCE, STREAM + FEED + HEADS),
    "explicit attention": (lambda: Attention(fused=False), SEQUENCE, STREAM + FEED + HEADS),
    "grouped queries by expand": (lambda: Attention(2, repeat="expand"), SEQUENCE, STREAM + FEED + 2),
    "grouped queries, interleaved": (lambda: Attention(2, repeat="repeat"), SEQUENCE, STREAM + FEED + 2),
    "rotary": (lambda: Attention(rotary=True), SEQUENCE, STREAM + FEED + HEADS),
    "one key head": (OneKeyHead, SEQUENCE, STREAM + FEED + HEAD_DIM),
    "query-key norm": (QueryKeyNorm, SEQUENCE, 2 * WIDTH + HEADS),
    "packed attention": (PackedAttention, SEQUENCE, STREAM + HEADS),
    "folded heads": (FoldedHeads, SEQUENCE, STREAM + HEADS),
    "einsum attention": (EinsumAttention, SEQUENCE, STREAM + 5),  # a dim of heads * 5 keeps the longer
    "tied language model": (TiedLanguageModel, torch.arange(2 * TOKENS).reshape(2, TOKENS), STREAM + FEED),
    "shuffle": (ShuffleUnits, IMAGE, 8 + 6 + 9),
    "pixel shuffle": (PixelShuffles, IMAGE, 16 + 8 + 6 + 8),
    "decoder": (Decoder, IMAGE, 8 + 32 + 12 + 4),
    "U-Net": (UNet, IMAGE, 8 + 16 + 8 + 8),
    "LSTM": (lambda: Recurrent(nn.LSTM), SEQUENCE, 12 + 10),
    "LSTM, two layers": (lambda: Recurrent(nn.LSTM, num_layers=2), SEQUENCE, 12 + 10),
    "LSTM, projected": (lambda: Recurrent(nn.LSTM, proj_size=4), image(3, TOKENS, 5), 12 + 10 + 4),
    "GRU, both ways": (lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True), SEQUENCE, 12 + 10),
    "last state": (LastState, SEQUENCE, 10),
    "weight norm": (WeightNormed, IMAGE, 8 + 6),
    "spectral norm": (SpectralNormed, IMAGE, 7),
    "volume": (Volume, image(2, 2, 6, 6, 6), 6 + 4 + 5),
    "wave": (Wave, image(2, 2, 20), 8),
    "channel moves": (ChannelMoves, IMAGE, 12 + 12 + 4),
    "channel attention": (ChannelAttention, IMAGE, 12),
    "selective kernel": (SelectiveKernel, IMAGE, 8),
    "standardized conv": (StandardizedConv, IMAGE, 8 + 12),
    "folded groups": (FoldedGroups, IMAGE, 4),
    "learned queries": (LearnedQueries, image(2, 5), 8 + 12),
}
"""Builder, example input, and the number of units."""

HEAD_DIM_COUNTS = {
    "attention": STREAM + FEED + 2 * HEAD_DIM,  # queries with keys, and values
    "grouped queries by expand": STREAM + FEED + 2 * HEAD_DIM,
    "rotary": STREAM + FEED + HEAD_DIM // 2 + HEAD_DIM,  # channels turn in pairs
    "query-key norm": 2 * WIDTH + HEAD_DIM,  # values; a mean over the channels of a head keeps its heads
    "packed attention": STREAM + HEAD_DIM,  # one reshape over queries, keys and values
    "folded heads": STREAM + 2 * HEAD_DIM,
}
"""The number of units where attention loses channels of every head."""
