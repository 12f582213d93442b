"""The six networks that ECToNAS starts from (table 6): small, medium and large, with convolutions and without.

    size      channels of the cells    units of the dense layers
    small     3, 6, 9                  10
    medium    3, 6                     10, 10
    large     3                        100, 50, 10

A cell is a convolution 3 x 3 (padding 1), an average pool 2 x 2 (an odd last row has a window of its own), a batch norm
and a ReLU; a dense layer has a ReLU behind it; a linear layer gives the class scores. The names go by parameters: each
cell halves the image that the first dense layer reads. Everything has a bias, the convolutions too, as the paper has
it: at 1 x 28 x 28 the six have 28,413.5 trained parameters on average (it says 28,413).

They are of torch alone, and the same for a seed whatever was drawn before.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType

import torch
from torch import nn

from fxsurgery.errors import SurgeryError
from fxsurgery.seeding import seeded

SIZES: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]] = MappingProxyType(
    {"small": ((3, 6, 9), (10,)), "medium": ((3, 6), (10, 10)), "large": ((3,), (100, 50, 10))}
)
"""Channels of the cells and units of the dense layers, by size."""

_MNIST = (1, 28, 28)


def start_net(
    size: str,
    *,
    convolutions: bool,
    input_shape: Sequence[int] = _MNIST,
    classes: int = 10,
    seed: int = 0,
) -> nn.Sequential:
    """A start net, freshly initialized: (batch, *input_shape) -> (batch, classes), class scores before softmax.

    Args:
        size: `small`, `medium` or `large`.
        convolutions: whether convolution cells precede the dense layers.
        input_shape: shape of one sample: (channels, height, width); any shape without convolutions.
        classes: number of class scores.
        seed: seed of the weights.

    Raises:
        SurgeryError: the size is unknown, or a number is out of its range.
    """
    if size not in SIZES:
        raise SurgeryError(f"size={size!r}: it must be one of {', '.join(SIZES)}")
    shape = _checked(input_shape, convolutions=convolutions)
    if not _is_count(classes):
        raise SurgeryError(f"classes={classes!r}: it must be at least 1")
    channels, units = SIZES[size]
    with seeded(seed, torch.device("cpu")):
        return nn.Sequential(OrderedDict(_layers(shape, channels if convolutions else (), (*units, classes))))


def _layers(shape: tuple[int, ...], channels: Sequence[int], widths: Sequence[int]) -> Iterator[tuple[str, nn.Module]]:
    for number, (inner, outer) in enumerate(zip((shape[0], *channels), channels, strict=False), 1):
        yield f"cell{number}", _cell(inner, outer)
        shape = (outer, *(math.ceil(extent / 2) for extent in shape[1:]))
    yield "flatten", nn.Flatten()
    inner = math.prod(shape)
    for number, outer in enumerate(widths[:-1], 1):
        yield f"dense{number}", nn.Linear(inner, outer)
        yield f"relu{number}", nn.ReLU()
        inner = outer
    yield "output", nn.Linear(inner, widths[-1])


def _cell(inner: int, outer: int) -> nn.Module:
    parts: list[tuple[str, nn.Module]] = [
        ("conv", nn.Conv2d(inner, outer, 3, padding=1)),
        ("pool", nn.AvgPool2d(2, ceil_mode=True)),
        ("norm", nn.BatchNorm2d(outer)),
        ("relu", nn.ReLU()),
    ]
    return nn.Sequential(OrderedDict(parts))


def _checked(input_shape: object, *, convolutions: bool) -> tuple[int, ...]:
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else ()
    if not shape or not all(map(_is_count, shape)):
        raise SurgeryError(f"input_shape={input_shape!r}: give the sizes of one sample, such as (1, 28, 28)")
    if convolutions and len(shape) != 3:
        raise SurgeryError(
            f"input_shape={input_shape!r}: convolutions need (channels, height, width), such as (1, 28, 28)"
        )
    return shape


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def small_cnn(input_shape: Sequence[int] = _MNIST, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Cells of 3, 6 and 9 channels, a dense layer of 10: 2,289 parameters at 1 x 28 x 28."""
    return start_net("small", convolutions=True, input_shape=input_shape, classes=classes, seed=seed)


def medium_cnn(input_shape: Sequence[int] = _MNIST, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Cells of 3 and 6 channels, two dense layers of 10: 3,386 parameters at 1 x 28 x 28."""
    return start_net("medium", convolutions=True, input_shape=input_shape, classes=classes, seed=seed)


def large_cnn(input_shape: Sequence[int] = _MNIST, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """A cell of 3 channels, dense layers of 100, 50 and 10: 64,606 parameters at 1 x 28 x 28."""
    return start_net("large", convolutions=True, input_shape=input_shape, classes=classes, seed=seed)


def small_ffnn(input_shape: Sequence[int] = _MNIST, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """A dense layer of 10: 7,960 parameters at 1 x 28 x 28."""
    return start_net("small", convolutions=False, input_shape=input_shape, classes=classes, seed=seed)


def medium_ffnn(input_shape: Sequence[int] = _MNIST, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Two dense layers of 10: 8,070 parameters at 1 x 28 x 28."""
    return start_net("medium", convolutions=False, input_shape=input_shape, classes=classes, seed=seed)


def large_ffnn(input_shape: Sequence[int] = _MNIST, classes: int = 10, seed: int = 0) -> nn.Sequential:
    """Dense layers of 100, 50 and 10: 84,170 parameters at 1 x 28 x 28."""
    return start_net("large", convolutions=False, input_shape=input_shape, classes=classes, seed=seed)


START_NETS: Mapping[str, Callable[..., nn.Sequential]] = MappingProxyType(
    {
        "small-cnn": small_cnn,
        "medium-cnn": medium_cnn,
        "large-cnn": large_cnn,
        "small-ffnn": small_ffnn,
        "medium-ffnn": medium_ffnn,
        "large-ffnn": large_ffnn,
    }
)
"""The builder of each network, by name; all take `input_shape`, `classes` and `seed`."""
