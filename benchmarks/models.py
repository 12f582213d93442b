"""The networks that the benchmarks run, their presets, and the uniform-width control.

ResNet-20: He et al. 2016, section 4.2, with 1x1 convolution and batch norm as shortcut wherever the shape
changes (their option B; their CIFAR nets use the parameter-free option A). VGG16: the CIFAR variant, batch
norm after each convolution and one hidden linear layer.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import override

IMAGE = (1, 28, 28)
VGG16_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels at full width and number of convolutions, per stage."""


@dataclass(frozen=True)
class Preset:
    """A network and how it trains; `epochs` is the total of a run, pre-training included."""

    name: str
    factory: Callable[[float], nn.Module]
    """Function from a multiplier of all widths to the network."""
    epochs: int = 12
    batch_size: int = 64
    learning_rate: float = 0.05
    weight_decay: float = 1e-4
    width: float = 1.0

    def model(self, seed: int) -> nn.Module:
        """A freshly initialized network; the global random state is left as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # noqa: TID251 -- nn.Module initializers draw from the global generator only
            return self.factory(self.width)

    def macs(self) -> int:
        """Multiply-accumulates of convolutions and linear layers for one image."""
        with torch.device("meta"):
            return macs(self.factory(self.width), torch.empty(1, *IMAGE))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (batch, in, h, w) -> (batch, out, h / stride, w / stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )
        )

    @override
    def forward(self, x: Tensor) -> Tensor:
        """Run the block."""
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def resnet20(widths: tuple[int, int, int] = (8, 16, 32), in_channels: int = 1, classes: int = 10) -> nn.Module:
    """Three stages of three basic blocks: (batch, in_channels, h, w) -> (batch, classes)."""
    stem, last = widths[0], widths[-1]
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, stem, 3, padding=1, bias=False),
        nn.BatchNorm2d(stem),
        nn.ReLU(),
    ]
    channels = stem
    for stage, width in enumerate(widths):
        for block in range(3):
            layers.append(BasicBlock(channels, width, stride=2 if stage and not block else 1))
            channels = width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(last, classes))
    return _he_initialized(net)


def vgg16(width: float = 1 / 8, in_channels: int = 1, classes: int = 10) -> nn.Module:
    """Thirteen convolutions in five stages: (batch, in_channels, h, w) -> (batch, classes), h and w 17 to 32.

    Pooling rounds up, so that five poolings take 28 pixels to one, as they take 32.
    """
    layers: list[nn.Module] = []
    channels = in_channels
    for full_width, convolutions in VGG16_STAGES:
        for _ in range(convolutions):
            out = _scaled(full_width, width)
            layers += [nn.Conv2d(channels, out, 3, padding=1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels = out
        layers.append(nn.MaxPool2d(2, ceil_mode=True))
    hidden = [nn.Linear(channels, channels), nn.BatchNorm1d(channels), nn.ReLU()]
    return _he_initialized(nn.Sequential(*layers, nn.Flatten(), *hidden, nn.Linear(channels, classes)))


def macs(model: nn.Module, *inputs: Tensor) -> int:
    """Multiply-accumulates of the convolutions and matrix products of one forward pass in eval mode."""
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(*inputs)
    model.train(training)
    return int(counter.get_total_flops()) // 2


def uniform(preset: Preset, macs_fraction: float) -> Preset:
    """The same architecture, all widths scaled by the largest factor that keeps its MACs within the fraction.

    Raises:
        ValueError: Even one channel a layer costs more than that.
    """
    limit = macs_fraction * preset.macs()
    scaled = replace(preset, name=f"{preset.name} uniform {macs_fraction:g}")
    low, high = 0.0, preset.width
    if replace(scaled, width=low).macs() > limit:
        raise ValueError(f"{preset.name}: no width reaches {macs_fraction:g} of its MACs")
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if replace(scaled, width=middle).macs() <= limit else (low, middle)
    return replace(scaled, width=low)


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _he_initialized(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def _r20w8(width: float) -> nn.Module:
    return resnet20((_scaled(8, width), _scaled(16, width), _scaled(32, width)))


def _v8(width: float) -> nn.Module:
    return vgg16(width / 8)


PRESETS: dict[str, Preset] = {p.name: p for p in (Preset("R20w8", _r20w8), Preset("V8", _v8))}
