"""Channel groups with several possible widths, and the units that remain at each width.

A group whose units can be removed exactly has a few widths; its units are kept in the order of the L1 norm of their
weights in the next layers (SparseNAS, section 4, after OFA).
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.blocks import sum_operands
from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.gating import gate_plan
from fxsurgery.analysis.structure import ChannelGroup, Structure, structure
from fxsurgery.errors import StructureError
from fxsurgery.ops import registry
from fxsurgery.ops.facets import OperandArgument
from fxsurgery.ops.labels import Labels
from fxsurgery.ops.union_find import Ids
from fxsurgery.program import Program

Scores = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class WidthChoice:
    """A group and its possible widths, smallest first; `order` lists its units, most important first."""

    group: ChannelGroup
    order: Ids
    counts: tuple[int, ...]


def width_choices(
    program: Program, fractions: Sequence[float], align: int, *, inner_only: bool = False
) -> tuple[WidthChoice, ...]:
    """Return the groups with more than one width: `fractions` of the whole, in multiples of `align` where possible.

    With all groups at their smallest width, no tensor is empty.

    Args:
        program: the captured model.
        fractions: between 0 and 1; the whole is always among the widths.
        align: widths are multiples of this; a group too narrow for it stays as it is.
        inner_only: leave the groups of residual streams alone.
    """
    facts, scores, pinned = structure(program), consumed_l1(program), set[int]()
    streams = residual_streams(program) if inner_only else frozenset()
    groups = [g for g in elastic_groups(program) if streams.isdisjoint(g.units.tolist())]
    steps = [aligned_step(facts, group, align) or 1 for group in groups]
    while True:
        choices = [_choice(g, step, fractions, scores, pinned) for g, step in zip(groups, steps, strict=True)]
        gone = [choice.order[choice.counts[0] :] for choice in choices]
        keep = facts.mask(np.concatenate(gone) if gone else np.zeros(0, np.int64))
        emptied = {int(ids[np.argmax(scores[ids])]) for ids in facts.vectors() if not keep[ids].any()}
        if not emptied:
            return tuple(choice for choice in choices if len(choice.counts) > 1)
        pinned |= emptied


def elastic_groups(program: Program) -> tuple[ChannelGroup, ...]:
    """Return the groups whose removed units a mask can replace."""
    facts, gated = structure(program), set(gate_plan(program).units.tolist())
    return tuple(g for g in facts.groups if set(g.units.tolist()) <= gated and facts.removable(g))


@cached
def residual_streams(program: Program) -> frozenset[int]:
    """Return the units of all sums of two computed tensors."""
    facts, found = structure(program), set[int]()
    for node in program.nodes:
        operands = sum_operands(program, node)
        if operands is None or any(operand.op == "get_attr" for operand in operands):
            continue
        if isinstance(value := facts.values[node.name], Labels):
            found.update(*(plane.ravel().tolist() for plane in value.planes))
    return frozenset(found - {0})


def _choice(
    group: ChannelGroup, step: int, fractions: Sequence[float], scores: Scores, pinned: set[int]
) -> WidthChoice:
    """Return an elastic width whose `pinned` units come first and are kept at the smallest width."""
    whole, first = len(group.units), np.isin(group.units, sorted(pinned))
    least = max(1, math.ceil(int(first.sum()) / step)) * step
    rounded = [math.floor(fraction * whole / step + 0.5) * step for fraction in fractions]
    counts = {min(max(count, least), whole) for count in rounded} | {whole}
    order = np.lexsort((-scores[group.units], ~first))
    return WidthChoice(group, group.units[order], tuple(sorted(counts)))


def aligned_step(facts: Structure, group: ChannelGroup, align: int) -> int | None:
    """Return the number of units that changes all affected widths by a multiple of `align`; `None` if there is none."""
    step = 1
    for vector in _widths(facts, group):
        counts = np.array([np.count_nonzero(vector == unit) for unit in group.units])
        if counts.min() != counts.max() or counts.sum() != np.count_nonzero(vector):
            return None
        step = math.lcm(step, align // math.gcd(align, int(counts[0])))
    return step


def _widths(facts: Structure, group: ChannelGroup) -> Iterator[Ids]:
    for producer in group.producers:
        if producer in facts.tensors:
            vectors = [*facts.tensors[producer].values()]
        else:
            given = pytree.tree_leaves(facts.values[producer], is_leaf=lambda v: isinstance(v, Labels))
            vectors = [plane.ravel() for v in given if isinstance(v, Labels) for plane in v.planes]
        yield from (vector for vector in vectors if np.isin(group.units, vector).any())


@cached
def consumed_l1(program: Program) -> Scores:
    """Return for each unit the L1 norm of the weights of its consumers; 0 for a unit without such weights."""
    total = np.zeros(structure(program).size)
    for site in gate_plan(program).sites:
        norms = _entering_l1(program, site.node).double().cpu().numpy()
        if len(norms) == len(site.ids):
            np.add.at(total, site.ids, norms)
    total[0] = 0.0
    return total


def _entering_l1(program: Program, node: fx.Node) -> Tensor:
    """Return the L1 norm of a mixing node's weights for each input channel, (channels,)."""
    module = program.module(node) if node.op == "call_module" else None
    with torch.no_grad():
        if isinstance(module, nn.RNNBase):
            weights = [w for name, w in module.named_parameters() if name.startswith("weight_ih_l0")]
            return torch.stack([w.abs().sum(0) for w in weights]).sum(0)
        operator = program.operator(node)
        if operator is None or (place := operator.weight) is None:
            raise StructureError(
                f"%{node} mixes channels with a weight that is not declared; give its operator a `weight`"
            )
        weight = _value(program, node, module, place.argument)
        if place.inputs == 0:
            return weight.abs().flatten(1).sum(1)
        groups = registry.argument(node, module, place.groups)
        return _by_group(
            weight, int(structure(program).values[groups.name] if isinstance(groups, fx.Node) else groups or 1)
        )


def _value(program: Program, node: fx.Node, module: nn.Module | None, weight: OperandArgument) -> Tensor:
    if module is not None:
        return module.weight  # type: ignore[return-value]
    name = str(weight.of_node(node))
    return read_values(program, [name])[name]


def _by_group(weight: Tensor, groups: int) -> Tensor:
    out, entering = weight.shape[:2]
    return weight.abs().reshape(groups, out // groups, entering, -1).sum((1, 3)).flatten()
