"""Duplicate the channel of layers with a single output channel, which belong to no channel group.

The structure analysis identifies channel dims by their size, so it does not see a single channel. Its copies are
propagated through the layers that read them instead (`rewriting.downstream`): a norm repeats its entry, and a layer
splits its weight w,

    w'[k] = s[k] w,    s > 0 random,   sum of s = 1.

With equal shares the copies would stay identical in training.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.refit import refit
from fxsurgery.analysis.shared_modules import fixed
from fxsurgery.analysis.spatial_maps import Map, SpatialAxis
from fxsurgery.edit import Editor
from fxsurgery.lineage import Origin
from fxsurgery.match import Refusal
from fxsurgery.program import Program
from fxsurgery.rewriting.changes import Change
from fxsurgery.rewriting.downstream import can_follow, follow


@cached
def single_channel_layers(program: Program) -> Mapping[str, fx.Node]:
    """Return the nodes of the layers with one output channel, by the path of the layer."""
    return {
        str(node.target): node
        for node, layer in program.calls(nn.Linear, _ConvNd)
        if (layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels) == 1
        and not getattr(layer, "transposed", False)
        and fixed(program, str(node.target)) is None
    }


def can_copy(program: Program, path: str, more: int) -> bool:
    """Return True if `copy` can make `more` copies."""
    node = single_channel_layers(program)[path]
    return can_follow(
        program, node, lambda value: _change(program, node, value, torch.ones(more + 1, dtype=torch.float64))
    )


def copy(edit: Editor, path: str, more: int, generator: torch.Generator) -> Refusal | None:
    """Add `more` copies of the channel of the layer at `path`, without changing the outputs.

    Returns:
        `None` on success; otherwise the reason, with nothing edited.
    """
    program, node = edit.program, single_channel_layers(edit.program)[path]
    shares = torch.rand(more + 1, generator=generator, dtype=torch.float64) + 0.5
    value = read_values(program, {node.name})[node.name]
    found = follow(program, _change(program, node, value, shares / shares.sum()))
    if isinstance(found, Refusal):
        return found
    found.apply(edit)
    layer = program.module(node)
    rows = torch.zeros(more + 1, dtype=torch.int64)
    tensors = {name: p.detach()[rows.to(p.device)] for name, p in layer.named_parameters()}
    edit.replace_module(path, refit(layer, tensors))
    for name in tensors:
        edit.record_origin(f"{path}.{name}", Origin(f"{path}.{name}", {0: rows}))
    return None


def _change(program: Program, node: fx.Node, value: Tensor, shares: Tensor) -> Change:
    rank, layer = value.dim(), program.module(node)
    channel = rank - 1 if isinstance(layer, nn.Linear) else rank - layer.get_parameter("weight").dim() + 1
    copies = value.repeat([len(shares) if dim == channel else 1 for dim in range(rank)])
    factors = tuple(shares[:, None] if dim == channel else None for dim in range(1, rank))
    axes = tuple(None if dim == channel else (SpatialAxis(), SpatialAxis()) for dim in range(1, rank))
    own = Map(tuple(value.shape[1:]), tuple(copies.shape[1:]), factors, axes)
    return Change(node, copies, own, are_copies=True)
