"""A model as a few literals: what the conformance suite draws, prints, shrinks and keeps.

    Graph((3, 8, 8), (Conv(0, 4), Norm(1), Chunk(2, 2), Join(3, 4)), (Head((5,)),))

The maps of a graph are numbered: 0 is the image, and each step adds what it gives, one map or, for `Chunk`,
several. A step says by number what it reads; a head reads maps and gives one output. `repr` leaves out what
has its default value, and reads back. `Graph.module()` is a fresh model, the same at each call.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from conformance import layers
from conformance.steps import Again, Head, Literal, Shape, Step, Tied
from fxsurgery.capture import capture
from fxsurgery.program import Program
from zoo import lively


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
        """Random images: (batch, channels, *spatial), each noise on a color of its own."""
        generator = torch.Generator().manual_seed(seed)
        color = torch.randn(batch, self.image[0], *(1 for _ in self.image[1:]), generator=generator)
        return color + torch.randn(batch, *self.image, generator=generator)

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
