"""Which size of input a model is made for, among those that it takes."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from fxsurgery.capture.config_inputs import Shape
from fxsurgery.capture.layer_trace import LayerRecord
from fxsurgery.capture.meta_probe import ProbeRun
from fxsurgery.inputs import Inputs

IMAGES = (224, 32, 64, 96, 128, 160, 192, 256, 299, 227, 48, 112, 240, 288, 384, 448, 512, 28, 16, 8)
"""Sides of images, the usual first."""
GREY = (28, 32, 224, *(size for size in IMAGES if size not in {28, 32, 224}))
"""The same for images of one channel."""
CLIPS = ((16, 112, 112), (16, 224, 224), (8, 112, 112), (8, 224, 224), (32, 224, 224), (16, 64, 64), (8, 32, 32))
"""Frames, heights and widths of videos."""
VOLUMES = tuple((n, n, n) for n in (32, 64, 96, 128, 28, 16, 8))
CODES = (1, 4, 8, 7, 2, 16, 32)
"""Sides of the maps that a generator or decoder begins with."""
LENGTHS = (128, 256, 64, 512, 1024, 2048, 4096, 16000, 100, 32, 16, 12, 8, 4)
"""Of signals."""
STEPS = (16, 32, 64, 128, 8, 4, 256, 512, *(n for n in range(2, 65) if n not in {4, 8, 16, 32, 64}), 1)
"""Of sequences: the usual, then any."""
MAP = 7
USUAL, ROOMY = 224, (6, 14)
"""The commonest size, and how wide its smallest map may be."""
SMALLEST = 32
"""Of images with colors, unless the model takes smaller ones alone."""
LARGEST = 1024
NEAR = 0.2
"""As near to `MAP` as 8 is, in octaves: no other size is tried then."""
ENOUGH = 6

Make: TypeAlias = Callable[[Shape], Inputs]
"""From a size to inputs."""
Try: TypeAlias = Callable[[Inputs], ProbeRun]


@dataclass(frozen=True)
class Side:
    """A side of square images, and why it."""

    size: int
    why: str


def best_side(make: Make, layer: LayerRecord, attempt: Try) -> Side | None:
    """The side of the images that the model is made for; `None` where it takes none."""
    gray = layer.size[0] == 1
    sides = GREY if gray else IMAGES
    found = _maps(make, tuple(n for n in sides if gray or n >= SMALLEST), attempt) or _maps(make, sides[-3:], attempt)
    if not found:
        found = _maps(make, tuple(fitting(make, layer, attempt)), attempt, many=1)
        return next((Side(n, "worked out from its linear layer or stride") for n in found), None)
    size = min(found, key=lambda n: (_octaves(n, found[n]), sides.index(n)))
    if len(found) == 1 and _octaves(size, found[size]) > NEAR:
        return Side(size, "the only usual one that it takes")
    return Side(size, f"guessed: its smallest feature map is then {found[size]} wide")


def _maps(make: Make, sides: tuple[int, ...], attempt: Try, many: int = ENOUGH) -> dict[int, int]:
    """The sides that the model takes, each with its smallest map; after the first, those likely to be best."""
    found, left = dict[int, int](), list(sides)
    while left and len(found) < many:
        size = left.pop(0)
        trial = attempt(make((size, size)))
        if not trial.ran:
            continue
        found[size] = trial.smallest_map or size
        if _octaves(size, found[size]) <= NEAR:
            break
        ideal = MAP * size / found[size]
        left.sort(key=lambda n: abs(math.log2(n / ideal)))
    return found


def _octaves(size: int, smallest: int) -> float:
    """How far the smallest map at a size is from the one wanted."""
    low, high = ROOMY
    return 0.0 if size == USUAL and low <= smallest <= high else abs(math.log2(smallest / MAP))


def fitting(make: Make, layer: LayerRecord, attempt: Try) -> Iterator[int]:
    """Sizes that send into the first linear layer that fails as much as it takes; else multiples of a large stride."""

    def overflows(size: int, *, strictly: bool) -> bool:
        trial = attempt(make((size, size, size)))
        if trial.ran:
            return not strictly
        last = trial.layers[-1] if trial.layers else None
        return last is not None and last.kind == "linear" and last.seen[-1] > last.size[-1] - (not strictly)

    low = _least(lambda size: overflows(size, strictly=False))
    high = _least(lambda size: overflows(size, strictly=True))
    if low < high:
        yield next((n for n in IMAGES if low <= n < high), low)
    elif layer.stride > 3:
        yield from range(layer.stride, 64 * layer.stride, layer.stride)


def _least(holds: Callable[[int], bool]) -> int:
    """The least size for which it holds, if it holds from somewhere on."""
    low, high = 1, LARGEST
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
