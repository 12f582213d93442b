"""Awkward nets on images: channels that are shuffled, padded, sliced, shared, folded into space or into vectors."""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch
from torch.nn.utils import parametrizations
from torch.utils import _pytree as pytree
from typing_extensions import override

from benchmarks.coverage.samples import Sample
from fxsurgery.inputs import Inputs


def _conv3(inside: int, out: int, **options: Any) -> nn.Conv2d:  # noqa: ANN401
    return nn.Conv2d(inside, out, 3, padding=1, **options)


class GroupedShuffle(nn.Module):
    """Grouped convolutions around a channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = _conv3(3, 24), _conv3(24, 36, groups=3), _conv3(36, 18, groups=2)
        self.head = nn.Conv2d(18, 5, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.stem(x).relu()).relu()
        batch, channels, height, width = x.shape
        x = x.view(batch, 3, channels // 3, height, width).transpose(1, 2).reshape(batch, channels, height, width)
        return self.head(self.second(x).relu())


class PixelShuffles(nn.Module):
    """Channels into space and back."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = _conv3(3, 16), _conv3(16, 32)
        self.fine, self.down, self.head = _conv3(8, 6), nn.Conv2d(24, 8, 1), nn.Conv2d(8, 5, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_shuffle(self.up(self.stem(x).relu()), 2)
        return self.head(self.down(F.pixel_unshuffle(self.fine(x.relu()).relu(), 2)).relu())


class PadShortcut(nn.Module):
    """The parameter-free shortcut of a ResNet: strided, with zero channels at both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.norm = _conv3(3, 8), _conv3(8, 16, stride=2), nn.BatchNorm2d(16)
        self.after, self.head = _conv3(16, 16), nn.Linear(16, 5)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        y = self.norm(self.down(x)) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        return self.head(self.after(y.relu()).relu().mean((2, 3)))


class FlattenDecode(nn.Module):
    """An autoencoder: flattened, a code, unflattened, decoded by transposed convolutions, one of them grouped."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.code, self.decode = _conv3(3, 8, stride=2), nn.Linear(8 * 64, 24), nn.Linear(24, 12 * 16)
        self.up, self.grouped = nn.ConvTranspose2d(12, 8, 2, 2), nn.ConvTranspose2d(8, 8, 2, 2, groups=4)
        self.head = nn.Conv2d(8, 3, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        code = self.code(self.encode(x).relu().flatten(1)).relu()
        y = self.up(self.decode(code).view(-1, 12, 4, 4).relu()).relu()
        return self.head(self.grouped(y).relu())


class UNet(nn.Module):
    """Skips that are concatenated, and upsampling to the skip's size."""

    def __init__(self) -> None:
        super().__init__()
        self.top, self.middle, self.bottom = _conv3(3, 8), _conv3(8, 12), _conv3(12, 16)
        self.up, self.merge, self.last = nn.ConvTranspose2d(16, 12, 2, 2), _conv3(24, 10), _conv3(18, 8)
        self.head = nn.Conv2d(8, 2, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        a = self.top(x).relu()
        b = self.middle(F.max_pool2d(a, 2)).relu()
        c = self.bottom(F.avg_pool2d(b, 2)).relu()
        b = self.merge(torch.cat([self.up(c), b], 1)).relu()
        b = F.interpolate(b, size=a.shape[-2:], mode="bilinear", align_corners=False)
        return self.head(self.last(torch.cat((a, b), dim=1)).relu())


class SharedConv(nn.Module):
    """One convolution called twice, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = _conv3(3, 8), _conv3(8, 8), nn.Conv2d(8, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head(self.shared(self.shared(x).relu()).relu())


class WeightNorm(nn.Module):
    """Weights that are a direction and a length."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = parametrizations.weight_norm(_conv3(3, 12))
        self.body, self.head = parametrizations.weight_norm(_conv3(12, 10)), nn.Conv2d(10, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x).relu()).relu())


class SpectralNorm(nn.Module):
    """Weights divided by their largest singular value, beside a layer that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.free = parametrizations.spectral_norm(_conv3(3, 12)), _conv3(12, 16)
        self.head = nn.Conv2d(16, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.free(self.stem(x).relu()).relu())


class ChannelAttention(nn.Module):
    """ECA: a convolution that slides over the channels; then slices that gate each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.mix = _conv3(3, 16), nn.GroupNorm(4, 16), nn.Conv1d(1, 1, 3, padding=1)
        self.split, self.head = nn.Conv2d(16, 9, 1), nn.Conv2d(8, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        weights = self.mix(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1).sigmoid()
        x = self.split(x * weights)
        return self.head(x[:, 1:] * x[:, :1].sigmoid())


class SqueezeExcite(nn.Module):
    """Squeeze and excitation, PReLU a channel, an affine InstanceNorm, a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.slope = _conv3(3, 16), nn.InstanceNorm2d(16, affine=True), nn.PReLU(16)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.body, self.scale, self.head = _conv3(16, 16), nn.Parameter(torch.randn(16, 1, 1)), nn.Conv2d(16, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.slope(self.norm(self.stem(x)))
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu())
        x = x * F.hardsigmoid(gate)
        return self.head(x + self.scale * self.body(x))


class Unfold(nn.Module):
    """Patches by unfold, into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.patches, self.head = nn.Conv2d(3, 8, 1), nn.Linear(72, 10), nn.Linear(10, 4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.patches(F.unfold(self.stem(x), 3, padding=1).transpose(1, 2)).relu())


class StridedChannels(nn.Module):
    """Every other channel, one half each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.even, self.odd = _conv3(3, 16), nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)
        self.head = nn.Conv2d(6, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        return self.head((self.even(x[:, ::2]) + self.odd(x[:, 1::2])).relu())


class FlipAndRoll(nn.Module):
    """Channels reversed, and rolled by three."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = _conv3(3, 12), _conv3(3, 12), _conv3(3, 12)
        self.body, self.head = _conv3(12, 10), nn.Conv2d(10, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x) + self.second(x).flip(1) + torch.roll(self.third(x), 3, 1)
        return self.head(self.body(y.relu()).relu())


class IndexSelect(nn.Module):
    """Channels picked by a buffer of indices, once by indexing and once by index_select."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = _conv3(3, 16), _conv3(3, 16), nn.Conv2d(16, 4, 1)
        self.body = nn.Conv2d(16, 16, 1)
        self.register_buffer("order", torch.randperm(16))

    @override
    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)[:, self.order] + torch.index_select(self.second(x), 1, self.order)
        return self.head(self.body(y.relu()).relu())


class BlurPool(nn.Module):
    """A constant depthwise kernel, expanded to the width at hand."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = _conv3(3, 12), _conv3(12, 10), nn.Conv2d(10, 4, 1)
        self.register_buffer("kernel", torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])) / 16)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        kernel = self.kernel[None, None].expand(x.shape[1], 1, 3, 3)
        x = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, stride=2, groups=x.shape[1])
        return self.head(self.body(x).relu())


class StackAndChunk(nn.Module):
    """Branches stacked and flattened, and one branch in three chunks."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = _conv3(3, 8), _conv3(3, 8), _conv3(3, 24)
        self.both, self.one, self.head = nn.Conv2d(16, 10, 1), nn.Conv2d(8, 10, 1), nn.Conv2d(10, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        pair = torch.stack([self.first(x), self.second(x)], 1).flatten(1, 2)
        u, v, w = self.third(x).chunk(3, 1)
        return self.head(self.both(pair.relu()) + self.one(u * torch.sigmoid(v) + w))


class LearnedQueries(nn.Module):
    """Learned queries attend to the pixels of a feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.queries = _conv3(3, 16), nn.Parameter(torch.randn(1, 5, 16))
        self.attend, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        pixels = self.stem(x).flatten(2).transpose(1, 2)
        queries = self.queries.expand(x.shape[0], -1, -1)
        return self.head(self.attend(queries, pixels, pixels, need_weights=False)[0].mean(1))


class Volume(nn.Module):
    """Three spatial dims, and an adaptive pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv3d(2, 8, 3, padding=1), nn.BatchNorm3d(8)
        self.body, self.head = nn.Conv3d(8, 12, (1, 3, 3), stride=(1, 2, 2)), nn.Linear(12 * 2, 4)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.norm(self.stem(x)).relu()).relu()
        return self.head(F.adaptive_avg_pool3d(x, (2, 1, 1)).flatten(1))


class Functional(nn.Module):
    """Dropout, batch norm and convolution as functions, with parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.weight, self.bias = _conv3(3, 12), nn.Parameter(torch.randn(12)), nn.Parameter(torch.randn(12))
        self.register_buffer("running_mean", torch.zeros(12))
        self.register_buffer("running_var", torch.ones(12))
        self.kernel, self.head = nn.Parameter(torch.randn(10, 12, 3, 3) / 10), nn.Conv2d(10, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(
            self.stem(x), self.running_mean, self.running_var, self.weight, self.bias, training=self.training
        )
        x = F.dropout(F.silu(x), 0.2, training=self.training)
        return self.head(F.conv2d(x, self.kernel, padding=1).relu())


class _Clamp(torch.autograd.Function):
    """Clamped forward, straight through backward."""

    @staticmethod
    @override
    def forward(ctx: Any, x: Tensor) -> Tensor:
        del ctx
        return x.clamp(-1, 1)

    @staticmethod
    @override
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        del ctx
        return gradient


class AutogradFunction(nn.Module):
    """A function with a backward of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = _conv3(3, 12), _conv3(12, 10), nn.Conv2d(10, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(_Clamp.apply(self.stem(x))).relu())


class NoGrad(nn.Module):
    """A part that is not trained, inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.body, self.head = _conv3(3, 12), _conv3(12, 10), nn.Conv2d(10, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.frozen(x).relu()
        return self.head(self.body(x).relu())


class ItemBranch(nn.Module):
    """A branch on a value of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = _conv3(3, 12), _conv3(12, 10), nn.Conv2d(10, 4, 1)

    @override
    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max().item() > 100:
            x = x / 255
        return self.head(self.body(self.stem(x).relu()).relu())


class TwoOutputs(nn.Module):
    """Two heads on one trunk, one on features and one on their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.dense, self.label = _conv3(3, 12), _conv3(12, 10), _conv3(10, 2), nn.Linear(10, 5)

    @override
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(self.stem(x).relu()).relu()
        return self.dense(x), self.label(x.mean((2, 3)))


class Dicts(nn.Module):
    """A dict in, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.depth, self.head = _conv3(3, 12), _conv3(1, 12), nn.Conv2d(12, 4, 1)
        self.body = _conv3(12, 12)

    @override
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        features = self.body((self.image(batch["image"]) + self.depth(batch["depth"])).relu()).relu()
        return {"scores": self.head(features), "pooled": self.head(features).mean((2, 3))}


@dataclass
class Detections:
    """The output of `DataclassOut`."""

    scores: Tensor
    boxes: Tensor


pytree.register_dataclass(Detections)


class DataclassOut(nn.Module):
    """A dataclass out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.scores, self.boxes = _conv3(3, 12), _conv3(12, 10), _conv3(10, 2), _conv3(10, 4)

    @override
    def forward(self, x: Tensor) -> Detections:
        x = self.body(self.stem(x).relu()).relu()
        return Detections(scores=self.scores(x), boxes=self.boxes(x))


IMAGE = (2, 3, 16, 16)
NETS: tuple[type[nn.Module], ...] = (
    GroupedShuffle, PixelShuffles, PadShortcut, FlattenDecode, UNet, SharedConv, WeightNorm, SpectralNorm,
    ChannelAttention, SqueezeExcite, Unfold, StridedChannels, FlipAndRoll, IndexSelect, BlurPool, StackAndChunk,
    LearnedQueries, Volume, Functional, AutogradFunction, NoGrad, ItemBranch, TwoOutputs, Dicts, DataclassOut,
)  # fmt: skip


def samples() -> list[Sample]:
    """The nets, in the order of `NETS`."""
    return [Sample(net.__name__, functools.partial(_build, net)) for net in NETS]


def _build(net: type[nn.Module]) -> tuple[nn.Module, Inputs]:
    if net is Dicts:
        return net(), Inputs(({"image": torch.randn(*IMAGE), "depth": torch.randn(2, 1, 16, 16)},))
    return net(), Inputs((torch.randn(2, 2, 4, 10, 10) if net is Volume else torch.randn(*IMAGE),))
