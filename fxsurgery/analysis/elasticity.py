"""What can be elastic in a program: widths, depths and kernel sizes of which parts are slices of the whole.

*Widths.* A channel group whose units can be removed exactly takes a few widths; it keeps its units in the order
of the L1 norm of what the next layers weigh them with (SparseNAS, section 4, after OFA).

*Depths.* Identity-skip blocks `x + f(x)` that follow each other and are made of the same operations are a stage;
it keeps its first ones. Where sums of several kinds take turns, as attention and feed-forward parts do, a block
is one round of them.

*Kernels.* A convolution with odd sides, some of them larger than 3, takes the centre of its kernel. Its padding
shrinks with it, so there has to be enough: then it computes what the whole kernel would with zeros around.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils import _pytree as pytree

from fxsurgery.analysis.atoms import Ids
from fxsurgery.analysis.blocks import IdentityBlock, identity_blocks, sum_operands, writes_into
from fxsurgery.analysis.fact import fact
from fxsurgery.analysis.gating import gate_plan
from fxsurgery.analysis.labels import Labels
from fxsurgery.analysis.pointwise import pointwise
from fxsurgery.analysis.reading import read_values
from fxsurgery.analysis.refit import is_parametrized
from fxsurgery.analysis.shapes import target_name
from fxsurgery.analysis.structure import ChannelGroup, Structure, structure
from fxsurgery.elastic import ELASTIC_CONVS, Size, margins
from fxsurgery.program import Program

Scores = NDArray[np.float64]

LONGEST_ROUND = 8
"""Sums that make up one block of a stage, at most; Swin's take four."""
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
MOVES = {"view", "reshape", "flatten", "unflatten", "permute", "transpose", "layer_norm", "rms_norm", "group_norm"}
"""Functions and methods that may stand between one block and the next, beside activations and norms."""


@dataclass(frozen=True, eq=False)
class WidthChoice:
    """A group and the numbers of units that it may keep, smallest first; `order` has the most important first."""

    group: ChannelGroup
    order: Ids
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Stage:
    """Blocks of which the first ones may be kept, each of one or more residual sums."""

    name: str
    """The first layer of the first block, as the user calls it."""
    blocks: tuple[tuple[IdentityBlock, ...], ...]


@dataclass(frozen=True, eq=False)
class KernelChoice:
    """A convolution, its calls, and the kernel sizes that it takes, the largest first."""

    path: str
    nodes: tuple[fx.Node, ...]
    sizes: tuple[Size, ...]


def width_choices(
    program: Program, fractions: Sequence[float], align: int, *, inner_only: bool = False
) -> tuple[WidthChoice, ...]:
    """The groups of more than one width: `fractions` of the whole, in multiples of `align` where layers allow it.

    At the least widths, all at once, no tensor is empty.

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
    """The groups for whose removed units a mask can stand."""
    facts, gated = structure(program), set(gate_plan(program).units.tolist())
    return tuple(g for g in facts.groups if set(g.units.tolist()) <= gated and facts.removable(g))


@fact
def residual_streams(program: Program) -> frozenset[int]:
    """The units that some sum of two computed tensors has."""
    facts, found = structure(program), set[int]()
    for node in program.nodes:
        operands = sum_operands(node)
        if operands is None or any(operand.op == "get_attr" for operand in operands):
            continue
        if isinstance(value := facts.values[node.name], Labels):
            found.update(*(plane.ravel().tolist() for plane in value.planes))
    return frozenset(found - {0})


def _choice(
    group: ChannelGroup, step: int, fractions: Sequence[float], scores: Scores, pinned: set[int]
) -> WidthChoice:
    """`pinned` units come first, and the least width keeps them all."""
    whole, first = len(group.units), np.isin(group.units, sorted(pinned))
    least = max(1, math.ceil(int(first.sum()) / step)) * step
    rounded = [math.floor(fraction * whole / step + 0.5) * step for fraction in fractions]
    counts = {min(max(count, least), whole) for count in rounded} | {whole}
    order = np.lexsort((-scores[group.units], ~first))
    return WidthChoice(group, group.units[order], tuple(sorted(counts)))


def aligned_step(facts: Structure, group: ChannelGroup, align: int) -> int | None:
    """How many units change every width they make up by a multiple of `align`; `None` where none do."""
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


@fact
def consumed_l1(program: Program) -> Scores:
    """For each unit, the L1 norm of all weights that its consumers have for it; 0 for what none weighs."""
    total = np.zeros(structure(program).size)
    for site in gate_plan(program).sites:
        norms = _entering_l1(program, site.node).double().cpu().numpy()
        if len(norms) == len(site.ids):
            np.add.at(total, site.ids, norms)
    total[0] = 0.0
    return total


def _entering_l1(program: Program, node: fx.Node) -> Tensor:
    """(channels,) the L1 norm of what a mixing node weighs each entering channel with."""
    module = program.module(node) if node.op == "call_module" else None
    with torch.no_grad():
        if isinstance(module, nn.RNNBase):
            weights = [w for name, w in module.named_parameters() if name.startswith("weight_ih_l0")]
            return torch.stack([w.abs().sum(0) for w in weights]).sum(0)
        if isinstance(module, _ConvTransposeNd):
            return module.weight.abs().flatten(1).sum(1)
        if isinstance(module, (_ConvNd, nn.Linear)):
            return _by_group(module.weight, getattr(module, "groups", 1))
        weight = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
        groups = node.args[6] if len(node.args) > 6 else node.kwargs.get("groups", 1)
        known = groups if isinstance(groups, int) else structure(program).values[str(groups)]
        name = str(weight)
        return _by_group(read_values(program, [name])[name], int(known))


def _by_group(weight: Tensor, groups: int) -> Tensor:
    out, entering = weight.shape[:2]
    return weight.abs().reshape(groups, out // groups, entering, -1).sum((1, 3)).flatten()


def stages(program: Program, shallowest: int = 1) -> tuple[Stage, ...]:
    """The stages of more than `shallowest` blocks, in execution order."""
    found = list[Stage]()
    for chain in _chains(program):
        kinds, start = [_kind(program, block) for block in chain], 0
        while start < len(chain):
            width, times = _longest_repeat(kinds[start:])
            if times > shallowest:
                own = chain[start : start + width * times]
                rounds = [tuple(own[n : n + width]) for n in range(0, len(own), width)]
                found.append(Stage(_first_layer(program, own[0]), tuple(rounds)))
            start += width * times
    return tuple(found)


def _longest_repeat(kinds: Sequence[object]) -> tuple[int, int]:
    """The round at the start whose repeats reach furthest, the shortest of several: its length, and how often."""
    best = (1, 1)
    for width in range(1, min(LONGEST_ROUND, len(kinds)) + 1):
        times = 1
        while list(kinds[times * width : (times + 1) * width]) == list(kinds[:width]):
            times += 1
        if times > 1 and width * times > best[0] * best[1]:
            best = (width, times)
    return best


def _chains(program: Program) -> list[list[IdentityBlock]]:
    """Blocks that can be skipped, each with those that go on from its sum."""
    chains, last = list[list[IdentityBlock]](), dict[fx.Node, list[IdentityBlock]]()
    for block in identity_blocks(program):
        if _writes_outside(program, block):
            continue
        chain = last.pop(_origin(program, block.skip, last), None)
        if chain is None:
            chains.append(chain := [])
        chain.append(block)
        last[block.sum] = chain
    return chains


def _writes_outside(program: Program, block: IdentityBlock) -> bool:
    written = [writes_into(program, node) for node in block.inner]
    return any(target is not None and target not in block.inner for target in written)


def _origin(program: Program, node: fx.Node, sums: dict[fx.Node, list[IdentityBlock]]) -> fx.Node:
    """The sum that a value comes from by activations, norms and reshapes alone; the first of these where it is none."""
    while node not in sums and node.args and isinstance(source := node.args[0], fx.Node):
        norm = node.op == "call_module" and isinstance(program.module(node), NORMS)
        move = node.op in {"call_function", "call_method"} and target_name(node) in MOVES
        if not norm and not move and pointwise(program, node) is None:
            break
        node = source
    return node


def _kind(program: Program, block: IdentityBlock) -> tuple[str, ...]:
    """What a branch is made of, sizes aside."""
    return tuple(
        type(program.module(n)).__name__ if n.op == "call_module" else n.op if n.op == "get_attr" else target_name(n)
        for n in block.inner
    )


def _first_layer(program: Program, block: IdentityBlock) -> str:
    layers = (n for n in block.inner if n.op == "call_module" and any(True for _ in program.module(n).parameters()))
    return next((str(n.target) for n in layers), block.sum.name)


def kernel_choices(program: Program) -> tuple[tuple[KernelChoice, ...], dict[str, str]]:
    """The convolutions of elastic kernel size; of the others with a side above 3, by node, why they are none."""
    users, found, refused = _users_of_tensors(program), list[KernelChoice](), dict[str, str]()
    calls = dict[str, tuple[_ConvNd, list[fx.Node]]]()
    for node, conv in program.calls(_ConvNd):
        if max(conv.kernel_size) > 3:
            calls.setdefault(str(node.target), (conv, []))[1].append(node)
    for path, (conv, nodes) in calls.items():
        if reason := _fixed(conv, nodes, users):
            refused[nodes[0].name] = reason
        elif len(sizes := _sizes(conv)) > 1:
            found.append(KernelChoice(path, tuple(nodes), sizes))
        else:
            refused[nodes[0].name] = "it pads too little for a smaller kernel to see the same places"
    return tuple(found), refused


def _users_of_tensors(program: Program) -> dict[int, int]:
    """How many names each parameter has, by its id; reading it as an attribute counts as one more."""
    counts = dict[int, int]()
    named = dict(program.graph_module.named_parameters(remove_duplicate=False))
    read = [named[str(n.target)] for n in program.nodes if n.op == "get_attr" and str(n.target) in named]
    for parameter in (*named.values(), *read):
        counts[id(parameter)] = counts.get(id(parameter), 0) + 1
    return counts


def _fixed(conv: _ConvNd, nodes: Sequence[fx.Node], users: dict[int, int]) -> str | None:
    """Why the kernel of a convolution must stay as it is."""
    if is_parametrized(conv):
        return "its weight is computed from other tensors"
    if type(conv) not in ELASTIC_CONVS:
        return f"a {type(conv).__name__} is not known to take the centre of its kernel"
    if any(side > 3 and side % 2 == 0 for side in conv.kernel_size):
        return f"a kernel of {'x'.join(map(str, conv.kernel_size))} has no centre"
    if users.get(id(conv.weight), 0) != 1:
        return "its weight is shared with another layer"
    if any(len(n.args) != 1 or n.kwargs for n in nodes):
        return "it is called with options"
    return None


def _sizes(conv: _ConvNd) -> tuple[Size, ...]:
    """The kernel sizes, largest first: two less on every side above 3, as long as the padding can shrink with it."""
    sizes = [tuple(conv.kernel_size)]
    while max(sizes[-1]) > 3:
        smaller = tuple(side - 2 if side > 3 else side for side in sizes[-1])
        pads = [0] * len(smaller) if conv.padding == "valid" else conv.padding
        if not isinstance(pads, str) and any(p < m for p, m in zip(pads, margins(conv, smaller), strict=True)):
            break
        sizes.append(smaller)
    return tuple(sizes)
