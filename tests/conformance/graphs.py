"""A model as a few literals: what the conformance suite draws, prints, shrinks and keeps.

    Graph((3, 8, 8), (Conv(0, 4), Norm(1), Chunk(2, 2), Join(3, 4)), (Head((5,)),))

The maps of a graph are numbered: 0 is the image, and each step adds what it gives, one map or, for `Chunk`,
several. A step says by number what it reads; a head reads maps and gives one output. `repr` leaves out what
has its default value, and reads back. `Graph.module()` is a fresh model, the same at each call.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TypeAlias

import torch
from torch import Tensor, nn

from conformance import layers
from fxsurgery.capture import capture
from fxsurgery.program import Program
from zoo import lively

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


@dataclass(frozen=True, repr=False)
class Graph(Literal):
    """A model: an image, (channels, height, width) or (channels, length), steps, and heads."""

    image: Shape
    steps: tuple[Step, ...]
    heads: tuple[Head, ...]
    seed: int = 0
    dtype: str = "float32"
    frozen: tuple[int, ...] = ()
    """Maps whose layers do not train."""

    def module(self) -> nn.Module:
        """The model: fresh, lively, in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = Model(self)
            _enliven_instance_norms(model)
            images = self.example(16, seed=self.seed + 1) if _all_running(model) else None
            model = lively(model, self.seed, images).eval()
        for name in model.names(self.frozen):
            model.get_submodule(name).requires_grad_(requires_grad=False)
        return model.to(getattr(torch, self.dtype))

    def example(self, batch: int = 4, seed: int = 0) -> Tensor:
        """Random images: (batch, channels, *spatial), each noise on a colour of its own."""
        generator = torch.Generator().manual_seed(seed)
        colour = torch.randn(batch, self.image[0], *(1 for _ in self.image[1:]), generator=generator)
        return colour + torch.randn(batch, *self.image, generator=generator)

    def program(self) -> Program:
        """The captured model."""
        return capture(self.module(), self.example().to(getattr(torch, self.dtype)))


def built(graph: Graph) -> Iterator[tuple[str, tuple[int, ...], nn.Module, list[Shape]]]:
    """For each step and head: its name, the maps it reads, its module, and the shapes of what it gives."""
    shapes, made = [graph.image], dict[int, tuple[str, Step]]()
    modules = dict[str, nn.Module]()
    for number, step in enumerate(graph.steps):
        name = f"{type(step).__name__.lower()}{number}"
        own = [shapes[i] for i in step.reads]
        if isinstance(step, Again):
            name = made[step.of][0]
        elif isinstance(step, Tied):
            first, like = made[step.of]
            modules[name] = like.build(*own)
            modules[name].weight = modules[first].weight
        else:
            modules[name] = step.build(*own)
        made[len(shapes)] = made[step.of] if isinstance(step, (Again, Tied)) else (name, step)
        given = shapes_given(modules[name], own)
        shapes += given
        yield name, step.reads, modules[name], given
    for number, head in enumerate(graph.heads):
        own = [shapes[i] for i in head.reads]
        yield f"head{number}", head.reads, head.build(*own), []


def shapes_given(module: nn.Module, shapes: list[Shape]) -> list[Shape]:
    """The shapes, without the batch, of what `module` makes of maps of `shapes`."""
    training = module.training
    with torch.no_grad():
        given = module.eval()(*(torch.zeros(2, *s) for s in shapes))
    module.train(training)
    return [tuple(x.shape[1:]) for x in (given if isinstance(given, tuple) else (given,))]


class Model(nn.Module):
    """A graph as a user would have written it: its layers by name, called in turn."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.makers = ["image"]
        self.plan, self.readouts = list[tuple[str, tuple[int, ...]]](), list[tuple[str, tuple[int, ...]]]()
        for name, reads, module, given in built(graph):
            self.add_module(name, module)
            self.makers += [name] * len(given)
            (self.plan if len(self.plan) < len(graph.steps) else self.readouts).append((name, reads))

    def names(self, maps: tuple[int, ...]) -> set[str]:
        """The layers that give these maps."""
        return {self.makers[i] for i in maps if i}

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        maps = [x]
        for name, reads in self.plan:
            given = self.get_submodule(name)(*(maps[i] for i in reads))
            maps += given if isinstance(given, tuple) else [given]
        outputs = tuple(self.get_submodule(name)(*(maps[i] for i in reads)) for name, reads in self.readouts)
        return outputs if len(outputs) > 1 else outputs[0]


def _all_running(model: nn.Module) -> bool:
    norms = (m for m in model.modules() if isinstance(m, tuple(layers.BATCH_NORMS.values())))
    return all(norm.track_running_stats for norm in norms)


def _enliven_instance_norms(model: nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.InstanceNorm1d, nn.InstanceNorm2d)):
                if module.affine:
                    module.weight.uniform_(0.7, 1.5)
                    module.bias.uniform_(-0.3, 0.3)
                if module.track_running_stats:
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.5, 1.5)
