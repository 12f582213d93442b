"""Which layers a program has, by the module paths of the user's model, and which channel groups each one belongs to.

A layer that mixes channels (a convolution, a linear, recurrent or embedding layer, or a function called with a
parameter) *produces* its output channels. A norm, an activation with parameters or a depthwise convolution keeps the
channels of its input: its groups are those of the layers before it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import fx, nn

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.layer_paths import layers_of, owner
from fxsurgery.analysis.structure import ChannelGroup, Structure, structure
from fxsurgery.program import Program


@dataclass(frozen=True)
class LayerWidth:
    """The output channels of one layer.

    Example:
        >>> import torch
        >>> from fxsurgery import capture
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 1))
        >>> layers = layer_widths(capture(model.eval(), torch.ones(1, 3, 4, 4)))
        >>> layers["0"].groups, layers["1"].groups, layers["1"].produces, layers["2"].groups
        (('0',), ('0',), False, ())
    """

    name: str
    """Path of the module; of a parameter that belongs to the model itself, its name."""
    groups: tuple[str, ...]
    """Names of the channel groups that its output channels belong to; empty if its width cannot change."""
    produces: bool
    """Whether it produces its channels; a norm keeps those of its input."""


@cached
def layer_widths(program: Program) -> Mapping[str, LayerWidth]:
    """Return every layer with parameters, and every function that produces channels or multiplies, by name."""
    facts, nodes = structure(program), {node.name: node for node in program.nodes}
    produced = _produced(program, facts)
    mixing = produced.keys() | _mixing(program, facts)
    kept = _kept(facts, mixing)
    working = [layer for part in facts.work for layer in _layers_of(nodes, part.node)]
    names = dict.fromkeys([*_with_parameters(program), *produced, *working])
    return {name: LayerWidth(name, tuple(produced.get(name, kept.get(name, ()))), name in mixing) for name in names}


def producer_names(program: Program, group: ChannelGroup) -> tuple[str, ...]:
    """Return the layers that produce the units of a group, in the order in which they run."""
    nodes = {node.name: node for node in program.nodes}
    return tuple(dict.fromkeys(layer for producer in group.producers for layer in _layers_of(nodes, producer)))


def _layers_of(nodes: Mapping[str, fx.Node], producer: str) -> list[str]:
    """Return the layers of a node, or of the parameter of that path."""
    return layers_of(nodes[producer]) if producer in nodes else [owner(producer)]


def _with_parameters(program: Program) -> Iterator[str]:
    for node, module in program.calls(nn.Module):
        if any(True for _ in module.parameters()):
            yield str(node.target)
    yield from (owner(name) for name, _ in program.graph_module.named_parameters())


def _produced(program: Program, facts: Structure) -> dict[str, dict[str, None]]:
    """Return the names of the groups that each producing layer has a part in."""
    nodes = {node.name: node for node in program.nodes}
    produced = dict[str, dict[str, None]]()
    for group in facts.groups:
        for producer in group.producers:
            for layer in _layers_of(nodes, producer):
                produced.setdefault(layer, {})[group.name] = None
    return produced


def _mixing(program: Program, facts: Structure) -> set[str]:
    """Return the layers that mix channels: a dim of their weights runs over channels that they only read."""
    sites = {contraction.node for contraction in facts.contractions}
    return {layer for node in program.nodes if node.name in sites for layer in layers_of(node)}


def _kept(facts: Structure, mixing: set[str]) -> dict[str, dict[str, None]]:
    """Return the names of the groups that the tensors of each layer that mixes no channels run along."""
    group_of = np.full(facts.size, -1)
    for number, group in enumerate(facts.groups):
        group_of[group.units] = number
    kept = dict[str, dict[str, None]]()
    for tensor, dims in facts.tensors.items():
        if owner(tensor) in mixing:
            continue
        for number in sorted({int(n) for ids in dims.values() for n in group_of[ids] if n >= 0}):
            kept.setdefault(owner(tensor), {})[facts.groups[number].name] = None
    return kept
