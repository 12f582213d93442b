"""The state of one analysis: the atoms, what each tensor is labeled with, and what was noticed on the way.

The rules (`fxsurgery.ops.rules`) talk to it and to nothing else.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from fxsurgery.ops.labels import Labels, along, first_along, is_frozen, is_vector, varying
from fxsurgery.ops.union_find import FROZEN, Ids, UnionFind

Attention = Literal["heads", "head_dim"]
"""What attention can lose: whole heads, or the same channels of every head."""


@dataclass(frozen=True, slots=True)
class Freeze:
    """`count` units may not be removed, since `op` at `node` needs them all."""

    node: str
    op: str
    count: int


@dataclass(frozen=True, slots=True)
class Contraction:
    """`node` sums over the labeled dim `dim` of its first input, weighted: a channel-mixing consumer."""

    node: str
    dim: int
    ids: Ids


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-accumulates for one sample; they scale with the surviving share of each of `dims`."""

    node: str
    op: str
    macs: float
    dims: tuple[Ids, ...]


@dataclass
class PropagationState:
    """Mutable while the analysis runs; `Structure` is what is kept of it."""

    atoms: UnionFind = field(default_factory=UnionFind)
    attention: Attention = "heads"
    """What batched products keep apart where labels run over heads and the channels of each."""
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
        """Tie `left` to `right`, element by element; units frozen by it are logged with the current op."""
        if froze := self.atoms.union(left, right):
            self.freezes.append(Freeze(self.node, self.op, froze))

    def freeze(self, ids: Ids) -> None:
        """Nothing of `ids` may be removed."""
        self.union(ids, FROZEN)

    def freeze_all(self, labels: Labels) -> None:
        """Nothing of a tensor may be removed."""
        for plane in labels.planes:
            self.freeze(plane)
        labels.planes = []

    def later(self, action: Callable[[], None]) -> None:
        """Run `action` when all nodes are known: a choice that a later consumer may make first."""
        self._later.append((self.node, self.op, action))

    def run_later(self) -> None:
        """Run what was put off, under the name of the op that put it off."""
        for node, op, action in self._later:
            self.node, self.op = node, op
            action()
        self._later.clear()

    def canonical(self, plane: Ids) -> Ids | None:
        """`plane` in roots, without the dims along which it is constant; `None` when nothing is left.

        A dim whose entries are all one unit cannot lose it: the unit is frozen.
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
        """Bring the planes of a tensor up to date with the unions so far, their entries not always to roots."""
        if labels.version == self.atoms.version:
            return
        if not all(map(self._is_alive, labels.planes)):
            labels.planes = [p for p in map(self.canonical, labels.planes) if p is not None]
        labels.version = self.atoms.version

    def stale(self, several: Iterable[Labels]) -> list[Labels]:
        """Those with a plane that is frozen, constant or varies along several dims; the others are up to date."""
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
        """Whether a plane plainly is as it should be, though not in roots: it starts free and ends otherwise."""
        if not is_vector(plane) or plane.size <= 1:
            return False
        first = self.atoms.find_one(plane.item(0))
        return first != 0 and first != self.atoms.find_one(plane.item(-1))

    def resolved(self, plane: Ids, prefer: Sequence[int] = ()) -> Ids | None:
        """Tie entries until `plane` varies along one dim: one of `prefer` if it can, else the longest.

        Dim 0 is the last choice: where it carries labels, the batch is folded into it.
        """
        known = self.canonical(plane)
        if known is None or len(varying(known)) <= 1:
            return known
        choice = [d for d in varying(known) if d in prefer] or [d for d in varying(known) if d] or varying(known)
        kept = max(choice, key=lambda d: known.shape[d])
        self.union(known, first_along(known, [kept]))
        return self.canonical(first_along(known, [kept]))

    def resolve(self, labels: Labels, prefer: Sequence[int] = ()) -> None:
        """`resolved` for each plane of a tensor."""
        self.refresh(labels)
        if all(map(is_vector, labels.planes)):
            return
        planes = (self.resolved(plane, prefer) for plane in labels.planes)
        labels.planes = [plane for plane in planes if plane is not None]

    def vector(self, labels: Labels, dim: int) -> Ids:
        """The roots along `dim`, all frozen where it carries no label. Resolves the tensor towards `dim`."""
        dim %= len(labels.shape)
        self.resolve(labels, [dim])
        along_it = [plane for plane in labels.planes if plane.shape[dim] > 1 and varying(plane) == [dim]]
        if not along_it:
            return np.zeros(labels.shape[dim], np.int64)
        for plane in along_it[1:]:
            self.freeze(plane)
        return self.atoms.find(along_it[0].ravel())

    def labeled(self, shape: Iterable[int], vectors: Mapping[int, Ids]) -> Labels:
        """A tensor of `shape` labeled along each dim of `vectors`."""
        labels = Labels(tuple(shape))
        for dim, ids in vectors.items():
            if len(ids) == 1:
                self.freeze(ids)
                continue
            labels.planes.append(along(self.atoms.find(ids), dim % len(labels.shape), len(labels.shape)))
        self.refresh(labels)
        return labels

    def without_overlap(self, labels: Labels) -> Labels:
        """Keep at most one plane for each dim: of two that share one, the smaller is frozen."""
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
        """Removing any of `ids` changes what is computed on the others (a norm or mean over them)."""
        self.inexact.append(ids.ravel())
        self.inexact_nodes[self.node] = None

    def mark_ungateable(self, ids: Ids) -> None:
        """`ids` are consumed where no gate can stand in front."""
        self.ungateable.append(ids.ravel())

    def scales_with(self, *dims: Ids) -> None:
        """The current op's work scales with the surviving share of each of `dims`."""
        self.work_dims = dims
