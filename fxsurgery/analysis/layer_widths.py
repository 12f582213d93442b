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
from fxsurgery.analysis.structure import Structure, structure
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
    """Return every layer with parameters, and every function that produces channels, by name."""
    facts = structure(program)
    produced = _produced(program, facts)
    mixing = produced.keys() | _mixing(program, facts)
    kept = _kept(facts, mixing)
    names = dict.fromkeys([*_with_parameters(program), *produced])
    return {name: LayerWidth(name, tuple(produced.get(name, kept.get(name, ()))), name in mixing) for name in names}


def layers_of(node: fx.Node) -> list[str]:
    """Return the layers that a node stands for: its module, or those whose parameters its function is called with."""
    if node.op == "call_module":
        return [str(node.target)]
    return list(dict.fromkeys(_read_from(node))) or [node.name]


def _with_parameters(program: Program) -> Iterator[str]:
    for node, module in program.calls(nn.Module):
        if any(True for _ in module.parameters()):
            yield str(node.target)
    yield from (_owner(name) for name, _ in program.graph_module.named_parameters())


def _owner(tensor: str) -> str:
    """Return the path of the module that holds a parameter; the parameter's name if that is the model itself."""
    return tensor.rpartition(".")[0] or tensor


def _produced(program: Program, facts: Structure) -> dict[str, dict[str, None]]:
    """Return the names of the groups that each producing layer has a part in."""
    nodes = {node.name: node for node in program.nodes}
    produced = dict[str, dict[str, None]]()
    for group in facts.groups:
        for producer in group.producers:
            layers = layers_of(nodes[producer]) if producer in nodes else [_owner(producer)]
            for layer in layers:
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
        if _owner(tensor) in mixing:
            continue
        for number in sorted({int(n) for ids in dims.values() for n in group_of[ids] if n >= 0}):
            kept.setdefault(_owner(tensor), {})[facts.groups[number].name] = None
    return kept


def _read_from(node: fx.Node) -> Iterator[str]:
    """Yield the owners of the parameters that a node reads, maybe through functions of parameters alone."""
    for read in node.all_input_nodes:
        if read.op == "get_attr":
            yield _owner(str(read.target))
        elif read.op != "placeholder" and _is_constant(read):
            yield from _read_from(read)


def _is_constant(node: fx.Node) -> bool:
    """Return True if a node depends on parameters and buffers alone."""
    waiting, seen = [node], {node}
    while waiting:
        read = waiting.pop()
        inputs = read.all_input_nodes
        if read.op == "placeholder" or (read.op != "get_attr" and not inputs):
            return False
        waiting += [one for one in inputs if one not in seen]
        seen.update(inputs)
    return True
