"""The steps and heads that a `Graph` is made of: literals, each of which builds its module."""

from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import nn

from conformance import layers

Shape: TypeAlias = tuple[int, ...]
"""(channels, *spatial) of a map."""
Extent: TypeAlias = int | tuple[int, ...]
"""One number for each spatial dim, or the same for all."""


class Literal:
    """What prints as a call that makes it again."""

    def __repr__(self) -> str:
        given = [(f, getattr(self, f.name)) for f in fields(self)]
        shown = (f"{value!r}" if f.default is f.default_factory else f"{f.name}={value!r}" for f, value in given
                 if value != f.default)  # fmt: skip
        return f"{type(self).__name__}({', '.join(shown)})"

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:
        printer.text(repr(self))


@dataclass(frozen=True, repr=False)
class Step(Literal):
    """One operation on the map `at`."""

    at: int

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.at,)

    def build(self, *shapes: Shape) -> nn.Module:
        """The module that does it to maps of these shapes."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class Conv(Step):
    out: int
    kernel: Extent = 3
    stride: Extent = 1
    padding: Extent | str = 1
    dilation: Extent = 1
    groups: int = 1
    bias: bool = True
    mode: str = "zeros"

    def build(self, *shapes: Shape) -> nn.Module:
        (channels, *spatial) = shapes[0]
        return layers.CONVS[len(spatial)](
            channels, self.out, self.kernel, self.stride, self.padding, self.dilation, self.groups, self.bias, self.mode
        )


@dataclass(frozen=True, repr=False)
class Transposed(Step):
    out: int
    kernel: int = 2
    stride: int = 2
    padding: int = 0
    output_padding: int = 0
    groups: int = 1
    bias: bool = True

    def build(self, *shapes: Shape) -> nn.Module:
        (channels, *spatial) = shapes[0]
        return layers.TRANSPOSED[len(spatial)](
            channels, self.out, self.kernel, self.stride, self.padding, self.output_padding, self.groups, self.bias
        )


@dataclass(frozen=True, repr=False)
class Norm(Step):
    """`batch`, `group`, `layer` (channels alone), `layer-all` (the whole map) or `instance`."""

    kind: str = "batch"
    groups: int = 2
    affine: bool = True
    running: bool = True

    def build(self, *shapes: Shape) -> nn.Module:
        (channels, *spatial), dims = shapes[0], len(shapes[0]) - 1
        match self.kind:
            case "group":
                return nn.GroupNorm(self.groups, channels, affine=self.affine)
            case "layer":
                return layers.ChannelsLast(nn.LayerNorm(channels, elementwise_affine=self.affine), dims)
            case "layer-all":
                return nn.LayerNorm((channels, *spatial), elementwise_affine=self.affine)
            case "instance":
                return layers.INSTANCE_NORMS[dims](channels, affine=self.affine, track_running_stats=self.running)
        return layers.BATCH_NORMS[dims](channels, affine=self.affine, track_running_stats=self.running)


@dataclass(frozen=True, repr=False)
class Act(Step):
    """A module of `layers.ACTIVATIONS`, or one of `layers.FUNCTIONS`; a name with `_` at its end writes in place."""

    kind: str = "relu"

    def build(self, *shapes: Shape) -> nn.Module:
        if self.kind == "prelu":
            return nn.PReLU(shapes[0][0])
        return layers.ACTIVATIONS[self.kind]() if self.kind in layers.ACTIVATIONS else layers.Call(self.kind)


@dataclass(frozen=True, repr=False)
class Pool(Step):
    kind: str = "max"
    kernel: int = 2
    stride: int = 2
    padding: int = 0
    ceil: bool = False

    def build(self, *shapes: Shape) -> nn.Module:
        pool = layers.POOLS[self.kind, len(shapes[0]) - 1]
        return pool(self.kernel, self.stride, self.padding, ceil_mode=self.ceil)


@dataclass(frozen=True, repr=False)
class Upsample(Step):
    def build(self, *shapes: Shape) -> nn.Module:
        return nn.Upsample(scale_factor=2.0)


@dataclass(frozen=True, repr=False)
class Dropout(Step):
    rate: float = 0.2

    def build(self, *shapes: Shape) -> nn.Module:
        return nn.Dropout(self.rate)


@dataclass(frozen=True, repr=False)
class Chunk(Step):
    """Several maps: so many equal pieces, or pieces of these sizes."""

    cut: int | tuple[int, ...] = 2

    def build(self, *shapes: Shape) -> nn.Module:
        return layers.Pieces(self.cut)


@dataclass(frozen=True, repr=False)
class Shuffle(Step):
    groups: int = 2

    def build(self, *shapes: Shape) -> nn.Module:
        return layers.Shuffle(self.groups)


@dataclass(frozen=True, repr=False)
class SqueezeExcite(Step):
    reduced: int = 4
    linear: bool = False

    def build(self, *shapes: Shape) -> nn.Module:
        return layers.SqueezeExcite(shapes[0][0], self.reduced, len(shapes[0]) - 1, linear=self.linear)


@dataclass(frozen=True, repr=False)
class Attention(Step):
    """`qkv` (one projection), `apart` (three, and softmax by hand) or `module` (torch's own)."""

    heads: int = 2
    kind: str = "qkv"

    def build(self, *shapes: Shape) -> nn.Module:
        return layers.SelfAttention(shapes[0][0], self.heads, len(shapes[0]) - 1, self.kind)


@dataclass(frozen=True, repr=False)
class FeedForward(Step):
    """Two linear layers on the channels of each position."""

    hidden: int = 8

    def build(self, *shapes: Shape) -> nn.Module:
        channels = shapes[0][0]
        inner = nn.Sequential(nn.Linear(channels, self.hidden), nn.GELU(), nn.Linear(self.hidden, channels))
        return layers.ChannelsLast(inner, len(shapes[0]) - 1)


@dataclass(frozen=True, repr=False)
class Join(Step):
    """The maps `at` and `other` as one: `+`, `add`, `iadd` (in place), `-`, `*`, `cat`."""

    other: int
    how: str = "+"

    @property
    def reads(self) -> tuple[int, ...]:
        return (self.at, self.other)

    def build(self, *shapes: Shape) -> nn.Module:
        return layers.Join(self.how)


@dataclass(frozen=True, repr=False)
class Again(Step):
    """The module that gave map `of`, called once more."""

    of: int


@dataclass(frozen=True, repr=False)
class Tied(Step):
    """A module like the one that gave map `of`, which shares its weight."""

    of: int


@dataclass(frozen=True, repr=False)
class Head(Literal):
    """One output: a vector (`mean`, `max`, `adaptive`, `flatten` of each map, then linear layers), or a `map`."""

    reads: tuple[int, ...]
    how: str = "mean"
    hidden: tuple[int, ...] = ()
    out: int = 4

    def build(self, *shapes: Shape) -> nn.Module:
        dims = len(shapes[0]) - 1
        if self.how == "map":
            return layers.CONVS[dims](shapes[0][0], self.out, 1)
        sizes = [torch.Size(s).numel() if self.how == "flatten" else s[0] for s in shapes]
        return layers.Readout(self.how, sum(sizes), self.hidden, self.out, dims)
