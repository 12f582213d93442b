"""Measure the constant that a removed channel leaves at each consumer, so that a bias can absorb it.

The weight row of each producer and the scale of the first norm after it are set to 0; offsets (bias, beta) stay. The
channel is then constant wherever no zero padding reaches. Running the program propagates the constant through
depthwise convolutions and their norms, pooling, concatenation, and sums, and its value is read at the input of each
consumer that mixes channels.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from fxsurgery.analysis.activations import read_entering
from fxsurgery.analysis.gating import GateSite, gate_plan
from fxsurgery.analysis.refit import refit, scale_name
from fxsurgery.analysis.structure import Mask, structure
from fxsurgery.edit import Editor
from fxsurgery.program import Program


@dataclass(frozen=True, eq=False)
class Leftover:
    """Constants that removed channels leave at one consumer."""

    site: GateSite
    values: Tensor
    """(channels,) constant of each removed channel; 0 for the others."""
    uniform: bool
    """Whether each is the same at every position and for every sample."""

    @property
    def is_zero(self) -> bool:
        """Return True if all constants are 0."""
        return not bool(self.values.any())

    @property
    def obstacle(self) -> str:
        """Reason why a bias cannot absorb them everywhere; empty if it can."""
        if self.is_zero or (self.uniform and not _pads(self.site)):
            return ""
        return "differs at zero-padded borders" if self.uniform else "is not constant"


def scale_silenced(program: Program, keep: Mask) -> Program:
    """Return `program` with scale 0 in the producers of removed units and the norms after them, offsets kept."""
    facts = structure(program)
    producing = {producer for group in facts.groups for producer in group.producers}
    first = _first_norms(program, producing)
    edit = Editor(program)
    for node in program.nodes:
        if node.op != "call_module":
            continue
        module, path = program.module(node), str(node.target)
        produces = node.name in producing and isinstance(module, (_ConvNd, nn.Linear))
        scales = node in first and module.weight is not None
        dim = 1 if isinstance(module, _ConvTransposeNd) else 0
        name = scale_name(module)
        ids = facts.tensors.get(f"{path}.{name}", {}).get(dim)
        if not (produces or scales) or ids is None or keep[ids].all():
            continue
        weight = module.get_parameter(name).detach().clone()
        index = torch.from_numpy(np.flatnonzero(~keep[ids])).to(weight.device)
        edit.replace_module(path, refit(module, {name: weight.index_fill_(dim, index, 0.0)}, None))
    return edit.finish("scale-silenced")


def _first_norms(program: Program, producing: set[str]) -> set[fx.Node]:
    """Return the norms that are the first on some path from a producer."""
    found, open_ways = set[fx.Node](), set[fx.Node]()
    for node in program.nodes:
        entered = any(i in open_ways for i in node.all_input_nodes)
        operator = program.operator(node)
        is_norm = node.op == "call_module" and operator is not None and operator.statistics is not None
        if is_norm and entered:
            found.add(node)
        elif node.name in producing or (entered and not is_norm):
            open_ways.add(node)
    return found


def leftovers(program: Program, silenced: Program, keep: Mask) -> list[Leftover]:
    """Return the constants that removed units leave at each consumer, measured in a run of `silenced`."""
    sites = [s for s in gate_plan(program).sites if not keep[s.ids].all()]
    seen = read_entering(silenced, {s.node.name: s.source.name for s in sites})
    return [_leftover(site, seen[site.node.name], keep) for site in sites]


def _leftover(site: GateSite, value: Tensor, keep: Mask) -> Leftover:
    """Take the median over samples and positions; a removed channel is uniform if no value deviates from it."""
    columns = value.movedim(site.dim, 0).flatten(1)
    removed = torch.from_numpy(~keep[site.ids]).to(value.device)
    middle = columns.median(dim=1).values
    values = torch.where(removed, middle, torch.zeros_like(middle))
    spread = (columns - middle[:, None]).abs().amax(dim=1)[removed]
    scale = columns.abs().amax().clamp_min(1e-12)
    return Leftover(site, values, bool((spread <= 1e-6 * scale).all()))


def _pads(site: GateSite) -> bool:
    owner = site.node.graph.owning_module
    module = owner.get_submodule(str(site.node.target)) if owner and site.node.op == "call_module" else None
    if not isinstance(module, _ConvNd):
        return not isinstance(module, nn.Linear)
    return isinstance(module, _ConvTransposeNd) or module.padding == "same" or any(p != 0 for p in module.padding)
