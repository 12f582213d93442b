"""Choice of the input size that a model is most likely designed for."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from fxsurgery.capture.config_inputs import Shape
from fxsurgery.capture.layer_trace import LayerRecord
from fxsurgery.capture.meta_probe import ProbeRun
from fxsurgery.inputs import Inputs

IMAGE_SIDES = (224, 32, 64, 96, 128, 160, 192, 256, 299, 227, 48, 112, 240, 288, 384, 448, 512, 28, 16, 8)
"""Side lengths of images, most common first."""
GRAY = (28, 32, 224, *(size for size in IMAGE_SIDES if size not in {28, 32, 224}))
"""Side lengths of images with one channel, most common first."""
VIDEO_SIZES = ((16, 112, 112), (16, 224, 224), (8, 112, 112), (8, 224, 224), (32, 224, 224), (16, 64, 64), (8, 32, 32))
"""Frames, height and width of videos."""
VOLUME_SIZES = tuple((n, n, n) for n in (32, 64, 96, 128, 28, 16, 8))
LATENT_SIDES = (1, 4, 8, 7, 2, 16, 32)
"""Side lengths of the maps that a generator or decoder starts from."""
SIGNAL_LENGTHS = (128, 256, 64, 512, 1024, 2048, 4096, 16000, 100, 32, 16, 12, 8, 4)
"""Lengths of signals."""
SEQUENCE_LENGTHS = (16, 32, 64, 128, 8, 4, 256, 512, *(n for n in range(2, 65) if n not in {4, 8, 16, 32, 64}), 1)
"""Lengths of sequences: the common ones, then any."""
PREFERRED_MAP = 7
"""Preferred width of the smallest feature map."""
COMMON_SIDE, COMMON_SIDE_MAPS = 224, (6, 14)
"""The most common size, and the widths of the smallest map for which it is chosen."""
MIN_COLOR_SIDE = 32
"""Minimum side of color images, unless the model accepts only smaller ones."""
MAX_SIDE = 1024
CLOSE_ENOUGH = 0.2
"""Distance from `PREFERRED_MAP` in octaves at which the search stops; that of a map of width 8."""
MAX_CANDIDATES = 6

Make: TypeAlias = Callable[[Shape], Inputs]
"""Creates inputs of a given size."""
Probe: TypeAlias = Callable[[Inputs], ProbeRun]


@dataclass(frozen=True)
class Side:
    """Side length of square images, and why it was chosen."""

    size: int
    why: str


def best_side(make: Make, layer: LayerRecord, probe: Probe) -> Side | None:
    """Return the side length that the model is designed for; None if it accepts none."""
    gray = layer.size[0] == 1
    sides = GRAY if gray else IMAGE_SIDES
    found = _maps(make, tuple(n for n in sides if gray or n >= MIN_COLOR_SIDE), probe) or _maps(make, sides[-3:], probe)
    if not found:
        found = _maps(make, tuple(fitting(make, layer, probe)), probe, limit=1)
        return next((Side(n, "computed from its linear layer or stride") for n in found), None)
    size = min(found, key=lambda n: (_octaves(n, found[n]), sides.index(n)))
    if len(found) == 1 and _octaves(size, found[size]) > CLOSE_ENOUGH:
        return Side(size, "chosen as the only common one that it accepts")
    return Side(size, f"guessed: its smallest feature map is then {found[size]} wide")


def _maps(make: Make, sides: tuple[int, ...], probe: Probe, limit: int = MAX_CANDIDATES) -> dict[int, int]:
    """Return the sides that the model accepts, each with its smallest map; likely candidates are tried first."""
    found, remaining = dict[int, int](), list(sides)
    while remaining and len(found) < limit:
        size = remaining.pop(0)
        trial = probe(make((size, size)))
        if not trial.ran:
            continue
        found[size] = trial.smallest_map or size
        if _octaves(size, found[size]) <= CLOSE_ENOUGH:
            break
        ideal = PREFERRED_MAP * size / found[size]
        remaining.sort(key=lambda n: abs(math.log2(n / ideal)))
    return found


def _octaves(size: int, smallest: int) -> float:
    """Return the distance in octaves of the smallest map from the preferred width."""
    low, high = COMMON_SIDE_MAPS
    return 0.0 if size == COMMON_SIDE and low <= smallest <= high else abs(math.log2(smallest / PREFERRED_MAP))


def fitting(make: Make, layer: LayerRecord, probe: Probe) -> Iterator[int]:
    """Yield sizes that match the first linear layer that fails; otherwise multiples of a large first stride."""

    def overflows(size: int, *, strictly: bool) -> bool:
        trial = probe(make((size, size, size)))
        if trial.ran:
            return not strictly
        last = trial.layers[-1] if trial.layers else None
        return last is not None and last.kind == "linear" and last.seen[-1] > last.size[-1] - (not strictly)

    low = _smallest(lambda size: overflows(size, strictly=False))
    high = _smallest(lambda size: overflows(size, strictly=True))
    if low < high:
        yield next((n for n in IMAGE_SIDES if low <= n < high), low)
    elif layer.stride > 3:
        yield from range(layer.stride, 64 * layer.stride, layer.stride)


def _smallest(holds: Callable[[int], bool]) -> int:
    """Return the smallest size for which `holds` is True, by bisection; it must be monotonic."""
    low, high = 1, MAX_SIDE
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
