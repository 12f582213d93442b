"""The width of every layer before and after: modules with weights, and parameters that the graph reads itself.

Norms are left out: they are as wide as what they follow.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from fxsurgery.analysis.structure import structure
from fxsurgery.ops import registry
from fxsurgery.program import Program
from fxsurgery.report.formatting import TIMES

FEWEST_IN_A_GROUP, MOST_IN_A_GROUP = 3, 60
"""Average number of layers in a group, at least, and number in any group, at most."""
DEEPEST_GROUP = 6


@dataclass(frozen=True)
class Size:
    """The size of a layer in one program."""

    kind: str
    channels: int
    """Number of output channels."""
    params: int
    macs: float
    """Multiply-accumulates for one sample."""
    fixed: bool
    """Whether none of its output channels can be removed."""


@dataclass(frozen=True)
class LayerRow:
    """One layer before and after; `None` where it does not exist."""

    name: str
    before: Size | None
    after: Size | None

    @property
    def kind(self) -> str:
        """Type of the layer, after or before."""
        return self._any.kind

    @property
    def widest(self) -> int:
        """The larger of the two widths."""
        return max(s.channels for s in (self.before, self.after) if s is not None)

    @property
    def state(self) -> str:
        """One of `removed`, `added`, `fixed`, `same` and `changed`."""
        if self.before is None or self.after is None:
            return "removed" if self.after is None else "added"
        if self.before.channels != self.after.channels:
            return "changed"
        return "fixed" if self.before.fixed else "same"

    @property
    def _any(self) -> Size:
        size = self.after or self.before
        assert size is not None
        return size


@dataclass(frozen=True)
class LayerGroup:
    """Consecutive layers in one part of the model."""

    name: str
    """Common path of the layers; empty at the top level."""
    layers: tuple[LayerRow, ...]

    @property
    def params(self) -> tuple[int, int]:
        """Numbers of parameters of all layers, before and after."""
        return (
            sum(layer.before.params for layer in self.layers if layer.before),
            sum(layer.after.params for layer in self.layers if layer.after),
        )

    @property
    def widest(self) -> int:
        """The largest width of any layer, before or after."""
        return max((layer.widest for layer in self.layers), default=1)

    def short(self, layer: LayerRow) -> str:
        """Return the name of a layer without the common path."""
        return layer.name.removeprefix(f"{self.name}.") if self.name else layer.name


def layers(original: Program, result: Program) -> tuple[LayerRow, ...]:
    """Return the layers of both programs in execution order; an added layer precedes the next one that stayed."""
    before, after = _sizes(original), _sizes(result)
    names = list(before)
    place = len(names)
    for name in reversed(after):
        if name in before:
            place = names.index(name)
        else:
            names.insert(place, name)
    return tuple(LayerRow(name, before.get(name), after.get(name)) for name in names)


def grouped(found: tuple[LayerRow, ...]) -> tuple[LayerGroup, ...]:
    """Return the layers grouped by part of the model, in order, in groups that are neither tiny nor huge."""
    groups = tuple(_groups(found, 0))
    for depth in range(1, DEEPEST_GROUP + 1):
        finer = tuple(_groups(found, depth))
        if FEWEST_IN_A_GROUP * len(finer) > len(found):
            break
        groups = finer
        if all(len(group.layers) <= MOST_IN_A_GROUP for group in groups):
            break
    return groups


def _groups(found: tuple[LayerRow, ...], depth: int) -> Iterator[LayerGroup]:
    for name, members in itertools.groupby(found, key=lambda layer: _part(layer.name, depth)):
        yield LayerGroup(name, tuple(members))


def _part(name: str, depth: int) -> str:
    """Return the path of a layer down to `depth` levels, without its own name."""
    return ".".join(name.split(".")[:-1][:depth])


def _sizes(program: Program) -> dict[str, Size]:
    """Return the size of every layer, by path."""
    macs = dict[str, float]()
    for work in structure(program).work:
        macs[work.node] = macs.get(work.node, 0.0) + work.macs
    sizes = dict[str, Size]()
    for node in _as_they_run(program):
        size = _called(program, node, macs) if node.op == "call_module" else _read(program, node, macs)
        if size is None:
            continue
        earlier = sizes.get(str(node.target))
        sizes[str(node.target)] = size if earlier is None else replace(size, macs=size.macs + earlier.macs)
    return sizes


def _as_they_run(program: Program) -> list[fx.Node]:
    """Return the nodes in execution order, with parameters right before their first use."""
    place = {node: number for number, node in enumerate(program.nodes)}
    return sorted(place, key=lambda n: min((place[u] for u in n.users), default=0) if n.op == "get_attr" else place[n])


def _called(program: Program, node: fx.Node, macs: Mapping[str, float]) -> Size | None:
    """Return the size of the module that a node calls, if it has weights."""
    module, path = program.module(node), str(node.target)
    params = list(module.parameters())
    if all(p.dim() < 2 for p in params):
        return None
    given = 1 if _gives_dim_1(module) else 0
    held = structure(program).tensors.items()
    fixed = not any(given in dims for name, dims in held if name.startswith(f"{path}."))
    return Size(_kind(module), _channels(module), sum(p.numel() for p in params), macs.get(node.name, 0.0), fixed)


def _read(program: Program, node: fx.Node, macs: Mapping[str, float]) -> Size | None:
    """Return the size of the parameter that a node reads, unless it is a vector."""
    value = program.attribute(str(node.target)) if node.op == "get_attr" else None
    if not isinstance(value, nn.Parameter) or value.dim() < 2:
        return None
    free = list(structure(program).tensors.get(str(node.target), {}))
    kind = f"parameter {TIMES.join(map(str, value.shape))}"
    work = sum(macs.get(user.name, 0.0) for user in node.users)
    # What is multiplied by has its outputs first; a table or token has its channels where units can go, or last.
    given = 0 if work else (free or [-1])[-1]
    return Size(kind, value.shape[given], value.numel(), work, given not in free)


def _kind(module: nn.Module) -> str:
    """Return the type in short: `Conv2d 3x3 /2 depthwise`."""
    name = type(module).__name__
    if not isinstance(module, _ConvNd):
        return name
    parts = [name, TIMES.join(map(str, module.kernel_size))]
    parts += [f"/{max(module.stride)}"] if max(module.stride) > 1 else []
    if module.groups > 1:
        parts.append("depthwise" if module.groups == module.in_channels else "grouped")
    return " ".join(parts)


def _gives_dim_1(module: nn.Module) -> bool:
    """Return True if the output channels of a layer run along dim 1 of its weight."""
    operator = registry.of_module(module)
    return operator is not None and operator.weight is not None and operator.weight.outputs == 1


def _channels(module: nn.Module) -> int:
    for name in ("out_channels", "out_features", "embedding_dim", "hidden_size", "embed_dim"):
        if isinstance(width := getattr(module, name, None), int):
            return width
    return next(p.shape[0] for p in module.parameters() if p.dim() > 1)
