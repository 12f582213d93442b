"""State of one label propagation: the union-find of atoms, and the findings so far.

Rules (`fxsurgery.ops.rules`) read and change only this state.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fxsurgery.ops.labels import Labels, along, first_along, is_frozen, is_vector, varying
from fxsurgery.ops.union_find import FROZEN, Ids, UnionFind

Attention = Literal["heads", "head_dim"]
"""Removable units of attention: whole heads, or the same channels of every head."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """`count` units cannot be removed, since `op` at `node` needs all of them."""

    node: str
    op: str
    count: int


@dataclass(frozen=True, slots=True)
class Contraction:
    """A channel-mixing consumer: `node` computes a weighted sum over the labeled dim `dim` of its first input."""

    node: str
    dim: int
    ids: Ids


@dataclass(frozen=True, slots=True)
class Work:
    """MACs per sample, which scale with the surviving fraction of each of `dims`."""

    node: str
    op: str
    macs: float
    dims: tuple[Ids, ...]


@dataclass
class PropagationState:
    """Mutable state during the analysis; `Structure` stores the result."""

    atoms: UnionFind = field(default_factory=UnionFind)
    attention: Attention = "heads"
    """Which units batched products keep separate when labels vary over heads and channels of heads."""
    node: str = ""
    op: str = ""
    freezes: list[Freeze] = field(default_factory=list)
    contractions: list[Contraction] = field(default_factory=list)
    produced: list[tuple[str, Ids]] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    inexact: list[Ids] = field(default_factory=list)
    inexact_nodes: dict[str, None] = field(default_factory=dict)
    ungateable: list[Ids] = field(default_factory=list)
    group_width: dict[str, int] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    work_dims: tuple[Ids, ...] = ()
    _later: list[tuple[str, str, Callable[[], None]]] = field(default_factory=list)

    def union(self, left: Ids, right: Ids) -> None:
        """Unite `left` with `right` elementwise; log the units that this freezes under the current op."""
        if froze := self.atoms.union(left, right):
            self.freezes.append(Freeze(self.node, self.op, froze))

    def freeze(self, ids: Ids) -> None:
        """Mark all units in `ids` as not removable."""
        self.union(ids, FROZEN)

    def freeze_all(self, labels: Labels) -> None:
        """Mark all units of a tensor as not removable."""
        for plane in labels.planes:
            self.freeze(plane)
        labels.planes = []

    def later(self, action: Callable[[], None]) -> None:
        """Postpone `action` until all nodes are processed, since a later consumer may decide first."""
        self._later.append((self.node, self.op, action))

    def run_later(self) -> None:
        """Run the postponed actions, attributed to the ops that postponed them."""
        for node, op, action in self._later:
            self.node, self.op = node, op
            action()
        self._later.clear()

    def canonical(self, plane: Ids) -> Ids | None:
        """Return `plane` with roots as entries and without constant dims; None if nothing is left.

        A dim whose entries all belong to one unit cannot lose it, so the unit is frozen.
        """
        plane = self.atoms.find(plane)
        if not plane.size:
            return None
        for dim in varying(plane):
            last = (0,) * dim + (-1,) + (0,) * (plane.ndim - dim - 1)
            if plane.item(0) == plane[last] and (plane == (head := plane.take([0], dim))).all():
                plane = head
        if plane.size == 1:
            self.freeze(plane)
            return None
        return None if is_frozen(plane) else plane

    def refresh(self, labels: Labels) -> None:
        """Update the planes of a tensor after unions; their entries are not necessarily roots."""
        if labels.version == self.atoms.version:
            return
        if not all(map(self._is_alive, labels.planes)):
            labels.planes = [p for p in map(self.canonical, labels.planes) if p is not None]
        labels.version = self.atoms.version

    def stale(self, several: Iterable[Labels]) -> list[Labels]:
        """Return the labels with a plane that is frozen, constant or varies along several dims."""
        found, vectors, firsts, lasts = list[Labels](), list[Labels](), list[int](), list[int]()
        for labels in several:
            if all(plane.size > 1 and is_vector(plane) for plane in labels.planes):
                vectors += [labels] * len(labels.planes)
                firsts += [plane.item(0) for plane in labels.planes]
                lasts += [plane.item(-1) for plane in labels.planes]
            else:
                found.append(labels)
        first, last = (self.atoms.find(np.array(ends, np.int64)) for ends in (firsts, lasts))
        return [*found, *(vectors[i] for i in np.flatnonzero((first == 0) | (first == last)))]

    def _is_alive(self, plane: Ids) -> bool:
        """Return True if a quick check shows that a plane is current: its first entry is free and not its last."""
        if not is_vector(plane) or plane.size <= 1:
            return False
        first = self.atoms.find_one(plane.item(0))
        return first != 0 and first != self.atoms.find_one(plane.item(-1))

    def resolved(self, plane: Ids, prefer: Sequence[int] = ()) -> Ids | None:
        """Unite entries until `plane` varies along one dim: one of `prefer` if possible, else the longest.

        Dim 0 is the last choice: if it has labels, the batch is folded into it.
        """
        known = self.canonical(plane)
        if known is None or len(varying(known)) <= 1:
            return known
        choice = [d for d in varying(known) if d in prefer] or [d for d in varying(known) if d] or varying(known)
        kept = max(choice, key=lambda d: known.shape[d])
        self.union(known, first_along(known, [kept]))
        return self.canonical(first_along(known, [kept]))

    def resolve(self, labels: Labels, prefer: Sequence[int] = ()) -> None:
        """Apply `resolved` to each plane of a tensor."""
        self.refresh(labels)
        if all(map(is_vector, labels.planes)):
            return
        planes = (self.resolved(plane, prefer) for plane in labels.planes)
        labels.planes = [plane for plane in planes if plane is not None]

    def vector(self, labels: Labels, dim: int) -> Ids:
        """Return the roots along `dim`, all frozen if it has no label. Resolves the tensor toward `dim`."""
        dim %= len(labels.shape)
        self.resolve(labels, [dim])
        along_it = [plane for plane in labels.planes if plane.shape[dim] > 1 and varying(plane) == [dim]]
        if not along_it:
            return np.zeros(labels.shape[dim], np.int64)
        for plane in along_it[1:]:
            self.freeze(plane)
        return self.atoms.find(along_it[0].ravel())

    def labeled(self, shape: Iterable[int], vectors: Mapping[int, Ids]) -> Labels:
        """Return the labels of a tensor of `shape`, labeled along each dim of `vectors`."""
        labels = Labels(tuple(shape))
        for dim, ids in vectors.items():
            if len(ids) == 1:
                self.freeze(ids)
                continue
            labels.planes.append(along(self.atoms.find(ids), dim % len(labels.shape), len(labels.shape)))
        self.refresh(labels)
        return labels

    def without_overlap(self, labels: Labels) -> Labels:
        """Keep at most one plane per dim: of two planes that share a dim, the smaller is frozen."""
        self.refresh(labels)
        kept = list[Ids]()
        taken = set[int]()
        for plane in sorted(labels.planes, key=lambda p: -p.size):
            if taken & set(varying(plane)):
                self.freeze(plane)
            else:
                kept.append(plane)
                taken |= set(varying(plane))
        labels.planes = kept
        return labels

    def mark_inexact(self, ids: Ids) -> None:
        """Record that removing any of `ids` changes the results for the others, as with a norm or mean over them."""
        self.inexact.append(ids.ravel())
        self.inexact_nodes[self.node] = None

    def mark_ungateable(self, ids: Ids) -> None:
        """Record that `ids` are consumed at a place where no gate can be inserted."""
        self.ungateable.append(ids.ravel())

    def scales_with(self, *dims: Ids) -> None:
        """Record that the work of the current op scales with the surviving fraction of each of `dims`."""
        self.work_dims = dims
