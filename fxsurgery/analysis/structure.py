"""Structure of a program: the units of its tensors, which units are coupled, and which can be removed.

A *unit* is a class of labels, named by its root: one channel, with every tensor slice that is removed with it. A
*channel group* is the vector of units that the same layers produce: the unit vector of a width.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import fx
from torch.utils import _pytree as pytree

from fxsurgery.analysis.cached import cached
from fxsurgery.analysis.layer_paths import layers_of
from fxsurgery.analysis.propagation import Propagation
from fxsurgery.errors import SpecError
from fxsurgery.ops.labels import Labels, is_frozen, varying
from fxsurgery.ops.propagation_state import Attention, Contraction, Freeze, PropagationState, Work
from fxsurgery.ops.union_find import Ids
from fxsurgery.program import Program

Mask = NDArray[np.bool_]
Counts = NDArray[np.bool_] | NDArray[np.int64]
"""For each id, its number of copies after a change of sizes: a `Mask` if nothing is copied."""


def is_unchanged(counts: Counts, ids: Ids) -> bool:
    """Return True if a dim along which `ids` run is unchanged."""
    return bool((counts[ids] == 1).all())


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Units that the same layers produce, in the order of their channels."""

    name: str
    """Path of the first layer that produces them, in the user's model; `#2` and so on if it has several groups.

    Of a function, the layer is the module whose parameters it is called with.
    """
    producers: tuple[str, ...]
    """The nodes that produce them; the tensor that holds them if there are none."""
    units: Ids
    """Their roots, one entry per unit."""


@dataclass(frozen=True, eq=False)
class Structure:
    """Units of the tensors of a program. Ids are roots; 0 stands for all that may not be removed."""

    tensors: Mapping[str, Mapping[int, Ids]]
    """The units along each dim of each parameter and buffer."""
    values: Mapping[str, Any]
    """The value of each node, by node name: `Labels` in place of tensors."""
    groups: tuple[ChannelGroup, ...]
    contractions: tuple[Contraction, ...]
    """The operations that consume units with a weight."""
    work: tuple[Work, ...]
    inexact: frozenset[int]
    """Units whose removal changes the values of other units, such as under a norm over them."""
    ungateable: frozenset[int]
    """Units with a consumer that cannot have a gate before it."""
    freezes: tuple[Freeze, ...]
    unknown: Mapping[str, tuple[str, ...]]
    """Operations without a rule, with the nodes whose inputs they froze."""
    group_width: Mapping[str, int]
    """Channels per group of a grouped convolution or norm that loses whole groups, by node."""
    uncounted: tuple[str, ...]
    unknown_macs: Mapping[str, tuple[str, ...]]
    """Operations whose MACs are not counted, with the nodes that run them."""
    inexact_nodes: frozenset[str]
    """Nodes at which a removal changes the values of the remaining units."""
    masks: frozenset[str]
    """Nodes whose values are Boolean tensors: as an index, such a tensor stands for as many dims as it has."""
    numbers: Mapping[str, tuple[tuple[str, tuple[int, ...]], ...]]
    """For each node whose value is a number, the tensors (by node) and dims whose extents it depends on."""
    size: int
    """One more than the largest id."""

    def mask(self, removed: Ids) -> Mask:
        """Return for each id whether it remains when the units `removed` are removed."""
        keep = np.ones(self.size, bool)
        keep[removed] = False
        keep[0] = True
        return keep

    def empty_dims(self, keep: Counts) -> list[int]:
        """Return one unit of each tensor dim that would become empty; empty if `keep` is valid."""
        if keep.all():
            return []
        vectors = list(self.vectors())
        starts = np.cumsum([0, *map(len, vectors[:-1])])
        left = np.logical_or.reduceat(keep[np.concatenate(vectors)] > 0, starts)
        return sorted({int(vectors[i].max()) for i in np.flatnonzero(~left)})

    def vectors(self) -> Iterator[Ids]:
        """Yield every labeled dim of parameters, buffers and values of nodes."""
        for dims in self.tensors.values():
            yield from dims.values()
        for value in self.values.values():
            if isinstance(value, Labels):
                yield from (plane.ravel() for plane in value.planes)
                continue
            for labels in pytree.tree_leaves(value, is_leaf=lambda v: isinstance(v, Labels)):
                if isinstance(labels, Labels):
                    yield from (plane.ravel() for plane in labels.planes)

    def along(self, labels: Labels) -> dict[int, Ids]:
        """Return the units of a tensor, by dim."""
        return {varying(plane)[0]: plane.ravel() for plane in labels.planes}

    def removable(self, group: ChannelGroup) -> bool:
        """Return True if the units of a group can be removed exactly, and a gate has the same effect."""
        units = set(group.units.tolist())
        return not units & self.inexact and not units & self.ungateable

    def is_mask(self, node: fx.Node) -> bool:
        """Return True if the value of `node` is a Boolean tensor."""
        return node.name in self.masks

    def group(self, name: str) -> ChannelGroup | None:
        """Return the channel group of that name; `None` if there is none."""
        return next((g for g in self.groups if g.name == name), None)

    def named(self, name: str) -> ChannelGroup:
        """Return the channel group of that name.

        Raises:
            SpecError: there is no such group.
        """
        if (group := self.group(name)) is not None:
            return group
        known = ", ".join(g.name for g in self.groups)
        raise SpecError(
            f"no channel group is named {name!r}; there are: "
            f"{known or 'none (gates freeze all channels: remove-gates takes them out)'}"
        )


@cached
def structure(program: Program) -> Structure:
    """Return the structure of `program`, where attention loses whole heads."""
    return _analyzed(program, "heads")


@cached
def head_dim_structure(program: Program) -> Structure:
    """Return the structure of `program`, where attention loses the same channels of every head."""
    return _analyzed(program, "head_dim")


def _analyzed(program: Program, attention: Attention) -> Structure:
    walk = Propagation(program, attention=attention)
    walk.walk()
    state, find = walk.state, walk.state.atoms.find
    tensors = {name: _rooted_dims(state, ids) for name, ids in walk.dims.items()}
    values = {name: _rooted(state, value) for name, value in walk.values.items()}
    return Structure(
        tensors=tensors,
        values=values,
        groups=tuple(_groups(walk, tensors, program)),
        contractions=tuple(Contraction(c.node, c.dim, find(c.ids)) for c in state.contractions),
        work=tuple(Work(w.node, w.op, w.macs, tuple(find(d) for d in w.dims)) for w in state.work),
        inexact=_members(state, state.inexact),
        inexact_nodes=frozenset(state.inexact_nodes),
        masks=frozenset(walk.masks),
        ungateable=_members(state, state.ungateable),
        freezes=tuple(state.freezes),
        unknown={op: tuple(dict.fromkeys(nodes)) for op, nodes in state.unknown.items()},
        group_width=dict(state.group_width),
        uncounted=tuple(walk.calls.uncounted),
        unknown_macs={op: tuple(nodes) for op, nodes in walk.calls.unknown_macs.items()},
        numbers=walk.numbers.by_name(),
        size=state.atoms.count,
    )


def _rooted_dims(state: PropagationState, dims: Mapping[int, Ids]) -> dict[int, Ids]:
    rooted = {dim: state.atoms.find(ids) for dim, ids in dims.items()}
    return {dim: ids for dim, ids in rooted.items() if not is_frozen(ids)}


def _rooted(state: PropagationState, value: Any) -> Any:  # noqa: ANN401
    def root(labels: Labels) -> Labels:
        state.refresh(labels)
        return Labels(labels.shape, [state.atoms.find(plane) for plane in labels.planes])

    if isinstance(value, Labels):
        return root(value)
    if not isinstance(value, (tuple, list, dict)):
        return value
    return pytree.tree_map_only(Labels, root, value, is_leaf=lambda v: isinstance(v, Labels))


def _members(state: PropagationState, noted: list[Ids]) -> frozenset[int]:
    if not noted:
        return frozenset()
    return frozenset(np.unique(state.atoms.find(np.concatenate(noted))).tolist()) - {0}


def _groups(walk: Propagation, tensors: Mapping[str, Mapping[int, Ids]], program: Program) -> Iterator[ChannelGroup]:
    """Return the units by the set of nodes that produce them, in execution order.

    Units that no node produces, such as the channels of a learned query, are listed by the parameter that holds them.
    """
    by_name = {node.name: node for node in program.nodes}
    makers = _Makers(walk.state.atoms.count)
    for node, ids in walk.state.produced:
        makers.add(node, walk.state.atoms.find(ids))
    made = makers.owner > 0
    made[0] = True
    for name, _ in program.graph_module.named_parameters():
        for ids in tensors.get(name, {}).values():
            if not made[ids].all():
                makers.add(name, ids[~made[ids]])
    seen = dict[str, int]()
    for nodes, units in makers.groups():
        first = layers_of(by_name[nodes[0]])[0] if nodes[0] in by_name else nodes[0]
        seen[first] = seen.get(first, 0) + 1
        yield ChannelGroup(first if seen[first] == 1 else f"{first}#{seen[first]}", nodes, units)


class _Makers:
    """The producers of each unit: a number for each set of nodes, computed on whole arrays."""

    def __init__(self, size: int) -> None:
        self.owner = np.zeros(size, np.int64)
        self._rank, self._place = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._ranked = 0
        self._sets: list[tuple[str, ...]] = [()]
        self._numbers = dict[tuple[str, ...], int]()

    def add(self, node: str, ids: Ids) -> None:
        """Record that `node` produces `ids`, roots in the order of its channels."""
        # The first place of each unit: of several writes to one entry, the last one stays.
        self._place[ids[::-1]] = np.arange(len(ids))[::-1]
        units = ids[(self._place[ids] == np.arange(len(ids))) & (ids > 0)]
        fresh = units[self.owner[units] == 0]
        self._rank[fresh] = np.arange(self._ranked, self._ranked + len(fresh))
        self._ranked += len(fresh)
        for old in set(self.owner[units].tolist()):
            if node not in self._sets[old]:
                self.owner[units[self.owner[units] == old]] = self._number((*self._sets[old], node))

    def _number(self, nodes: tuple[str, ...]) -> int:
        if nodes not in self._numbers:
            self._numbers[nodes] = len(self._sets)
            self._sets.append(nodes)
        return self._numbers[nodes]

    def groups(self) -> Iterator[tuple[tuple[str, ...], Ids]]:
        """Yield each set of nodes with the units that they produce, in the order of first production."""
        units = np.flatnonzero(self.owner)
        units = units[np.argsort(self._rank[units])]
        owners, firsts = np.unique(self.owner[units], return_index=True)
        for owner in owners[np.argsort(firsts)].tolist():
            yield self._sets[owner], units[self.owner[units] == owner]
