"""Models to keep a contract on: `ZOO`, tiny, one trait each; `REAL`, torchvision's, with ten classes.

Both map a name to a builder of a fresh, lively model in eval mode, the same at each call; `example(name)` is
its input. The global random state stays as it was.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

CLASSES = 10
IMAGE_SHAPE = (3, 12, 12)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
NORMS = (*BATCH_NORMS, nn.GroupNorm, nn.LayerNorm)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Linear)

Draw = Callable[[Tensor, float, float], None]
"""Fill a tensor with uniform values between two bounds."""


def lively(model: nn.Module, seed: int = 0, images: Tensor | None = None) -> nn.Module:
    """Randomize, in place, what initialization leaves trivial, so that a wrong rewrite shows in the outputs.

    Norms get random statistics and affine parameters of both signs, layers a random bias, linear layers and
    all-zero ones a random weight, PReLUs random slopes. Everything else keeps its values. A deep model wants
    `images`: statistics near those of its own activations, without which the signal dies out on the way.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(torch.rand(tensor.shape, generator=generator) * (high - low) + low)

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, NORMS):
                _enliven_norm(module, draw)
            elif isinstance(module, LAYERS):
                _enliven_layer(module, draw)
            elif isinstance(module, nn.PReLU):
                draw(module.weight, 0.1, 0.6)
        if images is not None:
            _settle_statistics(model, images, draw)
    return model


def _enliven_norm(module: nn.Module, draw: Draw) -> None:
    if getattr(module, "running_mean", None) is not None:
        draw(module.running_mean, -0.5, 0.5)
        draw(module.running_var, 0.5, 1.5)
    if module.weight is not None:
        draw(module.weight, 0.7, 1.5)
        module.weight[::4] *= -1
    if module.bias is not None:
        draw(module.bias, -0.3, 0.3)


def _settle_statistics(model: nn.Module, images: Tensor, draw: Draw) -> None:
    """Set running statistics to those of one batch, then disturb them."""
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.train().momentum = 1.0
    model(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval().momentum = momentum
        shift, stretch = torch.empty_like(norm.running_mean), torch.empty_like(norm.running_var)
        draw(shift, -0.3, 0.3)
        draw(stretch, 0.7, 1.4)
        norm.running_mean += shift * norm.running_var.sqrt()
        norm.running_var.clamp_(min=0.1 * float(norm.running_var.mean())).mul_(stretch)


def _enliven_layer(module: nn.Module, draw: Draw) -> None:
    if isinstance(module, nn.Linear) or not module.weight.any():
        bound = math.sqrt(3 / module.weight[0].numel())
        draw(module.weight, -bound, bound)
    if module.bias is not None:
        draw(module.bias, -0.3, 0.3)


class Plain(nn.Module):
    """conv -> bn -> relu -> dropout, twice, then pooling and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2),
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).mean((2, 3)))


class Residual(nn.Module):
    """A block with an identity shortcut, then one with a projection, each with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12)
        self.project = nn.Sequential(nn.Conv2d(8, 12, 1, stride=2, bias=False), nn.BatchNorm2d(12))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        x = F.relu(self.bn3(self.conv3(x)) + self.project(x))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class InvertedResidual(nn.Module):
    """MobileNetV3's block: expand, depthwise, squeeze-and-excite gate, project, shortcut; hardswish."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.Hardswish()
        )
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.project = nn.Sequential(nn.Conv2d(16, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(self.expand(x))
        gate = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.head((x + self.project(gate * y)).mean((2, 3)))


class DenseCat(nn.Module):
    """Each layer reads the concatenation of all earlier ones, through a batch norm over it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(10), nn.Conv2d(10, 4, 3, padding=1, bias=False)
        self.norm3, self.head = nn.BatchNorm2d(14), nn.Linear(14, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        features.append(self.conv1(F.relu(self.norm1(features[0]))))
        features.append(self.conv2(F.relu(self.norm2(torch.cat(features, 1)))))
        return self.head(F.relu(self.norm3(torch.cat(features, 1))).mean((2, 3)))


class ShuffleSplit(nn.Module):
    """ShuffleNetV2's unit: half the channels pass by, the halves join, two groups are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.last = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        x = torch.cat((left, self.branch(right)), dim=1)
        batch, channels, height, width = x.size()
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        x = F.relu(self.last(x.view(batch, channels, height, width)))
        return self.head(x.mean((2, 3)))


class Grouped(nn.Module):
    """A convolution of four groups between two dense ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 16, 3, padding=1, groups=4)
        self.b = nn.Conv2d(16, 6, 1)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.grouped(F.relu(self.bn(self.a(x)))))
        return self.head(self.b(x).mean((2, 3)))


class SharedConv(nn.Module):
    """One convolution, called twice, before two batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.conv, self.bn1, self.bn2 = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6), nn.BatchNorm2d(6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv(self.stem(x))))
        x = F.relu(self.bn2(self.conv(x)))
        return self.head(x.mean((2, 3)))


class TwoHeads(nn.Module):
    """A tuple of outputs: class scores and a map the size of the features."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.neck = nn.Conv2d(8, 6, 3, padding=1)
        self.classify, self.mask = nn.Linear(6, CLASSES), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.neck(self.body(x)))
        return self.classify(x.mean((2, 3))), self.mask(x)


class FlattenLinear(nn.Module):
    """VGG's end: channels and space are flattened together into a hidden linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(4))
        self.classifier = nn.Sequential(nn.Linear(6 * 3 * 3, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


class NoNorm(nn.Module):
    """Convolutions with biases and no norm; padding makes a removed channel's bias uneven at the border."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.head = nn.Conv2d(6, CLASSES, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.sigmoid(self.a(x))
        return self.head(F.leaky_relu(self.b(x), 0.1)).flatten(1)


class Conv1dNet(nn.Module):
    """One-dimensional convolutions on (batch, 3, 12)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn = nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)
        self.b = nn.Conv1d(8, 6, 3, stride=2)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool1d(F.relu(self.bn(self.a(x))), 2)
        return self.head(F.gelu(self.b(x)).mean(2))


class GroupNormNet(nn.Module):
    """Group norms, whose statistics mix channels: nothing can be removed from them exactly."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm1 = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8)
        self.b, self.norm2 = nn.Conv2d(8, 6, 3, padding=1), nn.GroupNorm(1, 6)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.a(x)))
        return self.head(F.silu(self.norm2(self.b(x))).mean((2, 3)))


class PReLUNet(nn.Module):
    """A slope a channel, and one slope for all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.bn, self.slopes = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.PReLU(8)
        self.b, self.slope = nn.Conv2d(8, 6, 3, stride=2), nn.PReLU()
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.slopes(self.bn(self.a(x)))
        return self.head(self.slope(self.b(x)).mean((2, 3)))


class Attention(nn.Module):
    """A vision transformer's block: patches, attention of two heads, a feed-forward part, layer norms before each."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 4, stride=4)
        self.norm1, self.norm2, self.norm = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc1, self.fc2 = nn.Linear(8, 12), nn.Linear(12, 8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(self.norm(x).mean(1))


class Encoder(nn.Module):
    """Two layers of a transformer over 20 tokens: they share its hidden width, and attention runs as functions."""

    def __init__(self) -> None:
        super().__init__()
        self.tok = nn.Embedding(20, 16)
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 24, batch_first=True), 2)
        self.head = nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.enc(self.tok(tokens)).mean(1))


class PooledLinear(nn.Module):
    """ECToNAS's nets: convolution cells with max and average pooling, of odd sizes, then two hidden linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.cell1 = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.MaxPool2d(2), nn.BatchNorm2d(6), nn.ReLU())
        self.cell2 = nn.Sequential(nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(3, 2, ceil_mode=True))
        self.dense1, self.dense2 = nn.Linear(6 * 2 * 2, 10), nn.Linear(10, 10)
        self.head = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cell2(self.cell1(x)).flatten(1)
        return self.head(F.relu(self.dense2(F.relu(self.dense1(x)))))


_TINY = (
    Plain, Residual, InvertedResidual, DenseCat, ShuffleSplit, Grouped, SharedConv, TwoHeads, FlattenLinear,
    NoNorm, Conv1dNet, GroupNormNet, PReLUNet, Attention, PooledLinear,
)  # fmt: skip

REAL_SIZES = {
    "resnet18": 32,
    "vgg16_bn": 32,
    "mobilenet_v2": 32,
    "mobilenet_v3_small": 32,
    "densenet121": 32,
    "efficientnet_b0": 64,
    "shufflenet_v2_x1_0": 32,
    "regnet_y_400mf": 64,
    "inception_v3": 75,
    "squeezenet1_1": 32,
}
"""Pixels a side: small, yet enough that float32 outputs stay within 2e-5 of float64 ones (relative)."""

_REAL_OPTIONS = {"inception_v3": {"aux_logits": False, "init_weights": False, "transform_input": False}}


def _seeded(name: str, build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return lively(build(), images=example(name, batch=32, seed=1)).eval()


def _torchvision(name: str) -> nn.Module:
    from torchvision.models import get_model

    return get_model(name, weights=None, num_classes=CLASSES, **_REAL_OPTIONS.get(name, {}))


ZOO: dict[str, Callable[[], nn.Module]] = {
    tiny.__name__: (lambda tiny=tiny: _seeded(tiny.__name__, tiny)) for tiny in _TINY
}
REAL: dict[str, Callable[[], nn.Module]] = {
    name: (lambda name=name: _seeded(name, lambda: _torchvision(name))) for name in REAL_SIZES
}


def example(name: str, batch: int = 2, seed: int = 0) -> Tensor:
    """Random images for a model of `ZOO` or `REAL`: (batch, 3, size, size), for Conv1dNet (batch, 3, 12).

    Each is noise on a color of its own, so that the images still differ after pooling.
    """
    shape = (3, REAL_SIZES[name], REAL_SIZES[name]) if name in REAL_SIZES else IMAGE_SHAPE
    if name == "Conv1dNet":
        shape = IMAGE_SHAPE[:2]
    generator = torch.Generator().manual_seed(seed)
    color = torch.randn(batch, 3, *(1 for _ in shape[1:]), generator=generator)
    return color + torch.randn(batch, *shape, generator=generator)
