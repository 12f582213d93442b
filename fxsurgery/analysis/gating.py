"""Positions of gates: the data input of every node that mixes channels with a weight."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import fx, nn

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.structure import structure
from fxsurgery.nn.gates import GateVector
from fxsurgery.ops.labels import Labels
from fxsurgery.ops.union_find import Ids
from fxsurgery.program import Program

GATES = "fxsurgery_gates"
"""Path of the gate modules in the model."""


@dataclass(frozen=True, eq=False)
class GateSite:
    """A position for a gate: between `source`, whose `dim` carries `ids`, and its reader `node`."""

    node: fx.Node
    source: fx.Node
    dim: int
    ids: Ids


@dataclass(frozen=True, eq=False)
class GatePlan:
    """All gate positions, the units that can be gated, and the units that cannot."""

    sites: tuple[GateSite, ...]
    units: Ids
    """The gated units, in increasing order: gate `i + 1` of the vector belongs to unit `units[i]`."""

    def index(self, ids: Ids) -> torch.Tensor:
        """Return the entry of each id in the gate vector: 0 for an ungated unit."""
        position = np.searchsorted(self.units, ids)
        found = (position < len(self.units)) & (self.units[np.minimum(position, len(self.units) - 1)] == ids)
        return torch.from_numpy(np.where(found, position + 1, 0))

    def without(self, units: Ids) -> "GatePlan":
        """Return the plan without gates for some units, and without positions that then have no gate."""
        left = self.units[~np.isin(self.units, units)]
        return GatePlan(tuple(site for site in self.sites if np.isin(site.ids, left).any()), left)


@cached
def gate_plan(program: Program) -> GatePlan:
    """Return the gate positions of `program` and the units that they gate."""
    facts = structure(program)
    nodes = {n.name: n for n in program.nodes}
    met = dict[str, int]()
    for contraction in facts.contractions:
        met[contraction.node] = met.get(contraction.node, 0) + 1
    sites, blocked = list[GateSite](), set[int](facts.ungateable)
    for contraction in facts.contractions:
        node, source = nodes[contraction.node], _source(nodes[contraction.node])
        if source is None or not _mixes(program, node) or met[node.name] > 1:
            blocked |= set(contraction.ids.tolist())
            continue
        entering = facts.values[source.name]
        if isinstance(entering, Labels) and contraction.ids.any():
            sites.append(GateSite(node, source, _dim(program, node, entering, contraction.dim), contraction.ids))
    gated = {int(u) for site in sites for u in site.ids} - blocked - {0}
    return GatePlan(tuple(sites), np.asarray(sorted(gated), np.int64))


def float_tensor(program: Program) -> torch.Tensor | None:
    """Return a floating-point tensor of the model, preferably a parameter; `None` if it has none."""
    tensors = (*program.graph_module.parameters(), *program.graph_module.buffers())
    return next((tensor for tensor in tensors if tensor.is_floating_point()), None)


def gates_like(program: Program, units: int) -> GateVector:
    """Return gates for `units` units, with the device and dtype of the model."""
    like = float_tensor(program)
    return GateVector(units) if like is None else GateVector(units).to(like.device, like.dtype)


def _dim(program: Program, node: fx.Node, entering: Labels, dim: int) -> int:
    """Return the dim of its input that `node` contracts; in the analysis each convolution's input has a batch dim."""
    operator = program.operator(node)
    places = operator.rank if operator is not None and operator.is_convolution else None
    return 0 if places is not None and len(entering.shape) == places + 1 else dim


def _source(node: fx.Node) -> fx.Node | None:
    first = node.args[0] if node.args else node.kwargs.get("input")
    return first if isinstance(first, fx.Node) else None


def _mixes(program: Program, node: fx.Node) -> bool:
    if node.op == "call_module" and isinstance(program.module(node), nn.RNNBase):
        return True
    operator = program.operator(node)
    if operator is None or not operator.is_mixing_layer:
        return False
    # Groups that the graph computes may be the samples of the batch, and a gate vector has one batch's length.
    groups = None if node.op == "call_module" or operator.weight is None else operator.weight.groups
    return groups is None or not isinstance(groups.of_node(node), fx.Node)
