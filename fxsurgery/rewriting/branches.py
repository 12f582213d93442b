"""Find the channels that one branch of a residual sum can lose while the stream keeps its width.

    y = x + f(x)    ->    y = x + scatter(f'(x))

A channel of an operand is *private* if only the sum reads it. To find out, each operand is *untied* in a copy of the
program that never runs: a dense layer is inserted between the operand and the sum, which separates the units of the
operand from those of the stream. Units that only this layer consumes are private.

The scatter is a zero pad if the surviving channels are contiguous; the structure analysis propagates through it.
Otherwise it pads one zero channel and indexes it for every removed channel. A branch that already has a scatter is
narrowed in front of it, so gates and channel indices refer to the current width of the branch.
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeGuard

import numpy as np
import torch
from torch import fx, nn
from torch.fx.node import Argument
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.analysis.blocks import dims_of, sum_operands
from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.gating import GATES, GatePlan, float_tensor, gate_plan
from fxsurgery.analysis.structure import Structure, structure
from fxsurgery.edit import Editor
from fxsurgery.match import Refusal
from fxsurgery.nn.gates import GateApply, GateVector
from fxsurgery.ops.labels import Labels
from fxsurgery.ops.layers import CONVOLUTION
from fxsurgery.ops.union_find import Ids
from fxsurgery.program import Program
from fxsurgery.rewriting.gate_insertion import insert_gates

_UNTIED = "fxsurgery_untied"


@dataclass(frozen=True, eq=False)
class Operand:
    """An operand of a residual sum: `sum` adds `source`, through a scatter if it has one; `dim` is the channel dim."""

    sum: fx.Node
    source: fx.Node
    dim: int
    places: tuple[int | None, ...]
    """The channel of `source` added to each channel of the sum; `None` where nothing is added."""
    scatter: tuple[fx.Node, ...] = ()
    """Nodes between `source` and `sum`."""

    @property
    def name(self) -> str:
        """Name of the operand in the text form of a pass."""
        return self.source.name

    @property
    def reader(self) -> fx.Node:
        """Node that reads `source`."""
        return (*self.scatter, self.sum)[0]


@dataclass(frozen=True, eq=False)
class Branch:
    """An operand with private channels."""

    operand: Operand
    ids: Ids
    """(channels,) unit of each channel in `Branches.facts`; 0 for channels that are not private."""

    @property
    def units(self) -> Ids:
        """Return each private unit once, in channel order."""
        private = self.ids[self.ids > 0]
        _, first = np.unique(private, return_index=True)
        return private[np.sort(first)]

    def channels(self, units: Ids) -> tuple[int, ...]:
        """Return the channels of these units; a unit has several channels if they can only be removed together."""
        return tuple(np.flatnonzero(np.isin(self.ids, units)).tolist())


@dataclass(frozen=True, eq=False)
class Branches:
    """All operands of residual sums: those that can lose channels on their own, and why the others cannot."""

    found: tuple[Branch, ...]
    refused: Mapping[str, str]
    """Reason for each refused operand, by name."""
    facts: Structure
    """Structure of the program with every operand untied; covers every tensor and node of the original."""
    streams: frozenset[int]
    """Units in the structure of the original program that flow into a sum with a branch."""

    def branch(self, name: str) -> Branch | None:
        """Return the branch with this operand name, or `None`."""
        return next((b for b in self.found if b.operand.name == name), None)


@dataclass(frozen=True, eq=False)
class IndependentGates:
    """Gates for the units outside residual streams, followed by the gates of each branch."""

    inner: GatePlan
    branches: tuple[Branch, ...]

    @property
    def size(self) -> int:
        """Number of gates."""
        return len(self.inner.units) + sum(len(b.units) for b in self.branches)

    def entries(self) -> Iterator[tuple[Branch, torch.Tensor]]:
        """Yield each branch with the gate-vector index of each of its channels; 0 for channels without a gate."""
        start = 1 + len(self.inner.units)
        for branch in self.branches:
            rank = {unit: start + position for position, unit in enumerate(branch.units.tolist())}
            yield branch, torch.tensor([rank.get(i, 0) for i in branch.ids.tolist()])
            start += len(rank)


@cached
def independent_gates(program: Program) -> IndependentGates:
    """Plan the gates of `program` with a separate set of gates for each branch of a residual stream."""
    tied, own = gate_plan(program), branches(program)
    units = np.asarray([u for u in tied.units.tolist() if u not in own.streams], np.int64)
    sites = tuple(site for site in tied.sites if np.isin(site.ids, units).any())
    return IndependentGates(GatePlan(sites, units), own.found)


def insert_independent(edit: Editor, plan: IndependentGates, gates: GateVector) -> None:
    """Insert `gates` at each consumer of inner units and at the input of each sum with a branch."""
    vector = insert_gates(edit, plan.inner, gates)
    for position, (branch, index) in enumerate(plan.entries()):
        at, apply = branch.operand, GateApply(index.to(gates.logits.device), branch.operand.dim)
        gated = edit.insert_call(f"{GATES}.branch{position}", apply, (at.source, vector), before=at.reader)
        edit.rewire(at.reader, at.source, gated)


@cached
def branches(program: Program) -> Branches:
    """Return the branches of the residual sums of `program`."""
    like = float_tensor(program)
    operands = () if like is None else tuple(_operands(program))
    edit, layers, sums = Editor(program), list[str](), dict[str, str]()
    for position, operand in enumerate(operands):
        path = f"{_UNTIED}.{position}"
        node = edit.insert_call(path, _dense(program, operand, like), (operand.source,), before=operand.reader)
        edit.rewire(operand.reader, operand.source, node)
        layers.append(path)
        sums[node.name] = operand.sum.name
    facts = structure(edit.finish("untied"))
    private = _Private(facts, layers, sums)
    found, refused = list[Branch](), dict[str, str]()
    for operand, layer in zip(operands, sums, strict=True):
        ids = _along(facts, operand)
        refusals = [private.obstacle(unit, layer) for unit in ids.tolist()]
        if all(refusals):
            refused[operand.name] = str(refusals[0])
        else:
            found.append(Branch(operand, np.where([r is None for r in refusals], ids, 0)))
    return Branches(tuple(found), refused, private.own, _streams(program, found))


class _Private:
    """Find the units of the untied program that only one layer consumes."""

    def __init__(self, facts: Structure, layers: Sequence[str], sums: Mapping[str, str]) -> None:
        """Index the structure of the untied program.

        Args:
            facts: the structure.
            layers: paths of the inserted dense layers.
            sums: the sum behind each inserted layer, by the names of their nodes.
        """
        weights = {f"{path}.weight" for path in layers}
        self.own = replace(facts, tensors={n: dims for n, dims in facts.tensors.items() if n not in weights})
        self._facts, self._sums = facts, sums
        self._streamed = {int(i) for name in weights for i in facts.tensors.get(name, {}).get(0, ())}
        self._held = {int(i) for dims in self.own.tensors.values() for ids in dims.values() for i in ids}
        self._readers = dict[int, set[str]]()
        for contraction in facts.contractions:
            for unit in set(contraction.ids.tolist()):
                self._readers.setdefault(unit, set()).add(contraction.node)

    def obstacle(self, unit: int, layer: str) -> Refusal | None:
        """Return why a unit read by `layer` is not private, or `None` if it is."""
        if unit == 0:
            return Refusal(layer, "its channels cannot be removed from their producer")
        if unit in self._streamed:
            return Refusal(layer, "it continues the residual stream, which keeps its width")
        if others := self._readers.get(unit, set()) - {layer}:
            return Refusal(
                layer, f"its channels are also read by %{min(self._sums.get(other, other) for other in others)}"
            )
        if unit in self._facts.inexact or unit in self._facts.ungateable:
            return Refusal(layer, "a norm, mean, or softmax runs over its channels")
        return None if unit in self._held else Refusal(layer, "no layer produces its channels")


def scatter(edit: Editor, operand: Operand, kept: Sequence[int]) -> None:
    """Scatter the remaining channels `kept` of `operand.source` back to their original positions in the sum."""
    now = {old: new for new, old in enumerate(kept)}
    places = [None if place is None else now.get(place) for place in operand.places]
    low = next(i for i, place in enumerate(places) if place is not None)
    neighbors = places[low : low + len(kept)] == list(range(len(kept)))
    inner = [0, 0] * (len(dims_of(edit.program, operand.source)) - 1 - operand.dim)
    amounts = [low, len(places) - low - len(kept)] if neighbors else [0, 1]
    wide = edit.insert_function(F.pad, (operand.source, [*inner, *amounts]), before=operand.sum)
    if not neighbors:
        picked = [len(kept) if place is None else place for place in places]
        index: Argument = (*[slice(None)] * operand.dim, picked)
        wide = edit.insert_function(operator.getitem, (wide, index), before=operand.sum)
    edit.rewire(operand.sum, (operand.source, *operand.scatter)[-1], wide)
    for node in reversed(operand.scatter):
        edit.erase(node)


def _operands(program: Program) -> Iterator[Operand]:
    """Yield the operands of every sum of two tensors of equal shape."""
    for node in program.nodes:
        for read in sum_operands(program, node) or ():
            shape = dims_of(program, read)
            if shape != dims_of(program, node) or (dim := _channel_dim(program, read)) is None:
                continue
            yield _in_front(program, Operand(node, read, dim, tuple(range(shape[dim]))))


def _channel_dim(program: Program, node: fx.Node) -> int | None:
    """Return the channel dim of an operand: the last dim of token sequences, otherwise dim 1."""
    labels = structure(program).values.get(node.name)
    known = structure(program).along(labels) if isinstance(labels, Labels) else {}
    last = len(dims_of(program, node)) - 1
    order = (1, last) if last > 2 else (last, 1)
    free = [d for d, ids in known.items() if ids.any()] or list(known)
    if not free and node.target is operator.getitem and isinstance(node.args[1], tuple):
        free = [len(node.args[1]) - 1]  # a scatter, whose channels have no label
    return next((d for d in order if d in free and d > 0), None)


def _in_front(program: Program, operand: Operand) -> Operand:
    """Return the operand in front of its scatter, if it has one of the form that `scatter` inserts."""
    node: object = operand.source
    picked: object = list(operand.places)
    nodes = list[fx.Node]()
    if operand.source.target is operator.getitem:
        node, index = operand.source.args
        if not isinstance(index, tuple) or list(index[:-1]) != [slice(None)] * operand.dim:
            return operand
        picked, nodes = index[-1], [operand.source]
    if not isinstance(node, fx.Node) or node.target is not F.pad or len(node.args) != 2 or node.kwargs:
        return operand
    source, amounts = node.args
    if not isinstance(source, fx.Node) or not _counts(picked) or not _counts(amounts):
        return operand
    *inner, low, high = amounts
    width = dims_of(program, source)[operand.dim]
    places = tuple(p - low if low <= p < low + width else None for p in picked)
    nodes.insert(0, node)
    padded = len(inner) == 2 * (len(dims_of(program, source)) - 1 - operand.dim) and not any(inner) and high >= 0
    once = sorted(p for p in places if p is not None) == list(range(width))
    if not padded or not once or any(len(n.users) != 1 for n in nodes):
        return operand
    return Operand(operand.sum, source, operand.dim, places, tuple(nodes))


def _counts(value: object) -> TypeGuard[Sequence[int]]:
    return isinstance(value, (list, tuple)) and all(type(i) is int and i >= 0 for i in value)


def _dense(program: Program, operand: Operand, like: torch.Tensor | None) -> nn.Module:
    """Return a layer that mixes the channels of an operand, for an analysis that does not run it."""
    shape = dims_of(program, operand.source)
    width = shape[operand.dim]
    kind = nn.Linear if operand.dim == len(shape) - 1 else CONVOLUTION[len(shape)]
    options = {} if kind is nn.Linear else {"kernel_size": 1}
    layer: nn.Module = nn.utils.skip_init(kind, width, width, bias=False, **options)  # type: ignore[no-untyped-call]
    return layer if like is None else layer.to(like.device, like.dtype)


def _along(facts: Structure, operand: Operand) -> Ids:
    """Return the unit of each channel of an untied operand."""
    found = facts.along(facts.values[operand.source.name]).get(operand.dim)
    return np.zeros(len(operand.places), np.int64) if found is None else found


def _streams(program: Program, found: Sequence[Branch]) -> frozenset[int]:
    facts = structure(program)
    ids = (facts.along(facts.values[b.operand.sum.name]).get(b.operand.dim, ()) for b in found)
    return frozenset(int(i) for units in ids for i in units) - {0}
