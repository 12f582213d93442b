"""Union-find over *atoms*, the smallest things that can be removed from a tensor's dim.

Atom 0 is *frozen*: what is united with it must stay. The root of a class is its least atom, so 0 is
always the root of its class and freezing is a union like any other. All operations take and give numpy
arrays of atoms and work on whole arrays at once.
"""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

Ids = NDArray[np.int64]
FROZEN: Ids = np.zeros(1, np.int64)

_SMALL = 4096
"""Entries up to which arrays are compared by their bytes."""


class UnionFind:
    """The atoms of one program, and which of them are one."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, np.int64)
        self.count = 1
        self.version = 0
        """Goes up with every union that changed anything."""

    def fresh(self, how_many: int) -> Ids:
        """New atoms, each its own class."""
        if self.count + how_many > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros(max(how_many, len(self._parent)), np.int64)])
        new = np.arange(self.count, self.count + how_many, dtype=np.int64)
        self._parent[new] = new
        self.count += how_many
        return new

    def find(self, ids: Ids) -> Ids:
        """The root of each id, in the shape of `ids`."""
        parent = self._parent
        roots = parent[ids]
        above = parent[roots]
        if _same(above, roots):
            return roots
        while not _same(above, roots):
            roots, above = above, parent[above]
        parent[ids] = roots
        return roots

    def find_one(self, atom: int) -> int:
        """The root of one atom."""
        item = self._parent.item
        while (above := item(atom)) != atom:
            atom = above
        return atom

    def union(self, left: Ids, right: Ids) -> int:
        """Make `left` and `right` one, element by element under broadcasting; how many froze by it."""
        if left.shape == right.shape:
            a, b = left.ravel(), right.ravel()
        else:
            a, b = (x.ravel() for x in np.broadcast_arrays(left, right))
        froze = 0
        while True:
            a, b = self.find(a), self.find(b)
            if _same(a, b):
                return froze
            differ = a != b
            self.version += 1
            a, b = a[differ], b[differ]
            high, low = np.maximum(a, b), np.minimum(a, b)
            frozen = high[low == 0]
            froze += len(set(frozen.tolist()))
            self._parent[high] = low


def _same(left: Ids, right: Ids) -> bool:
    """Whether two arrays of one shape are equal; most are small, where comparing their bytes is the fastest."""
    if left.size < _SMALL:
        return left.tobytes() == right.tobytes()
    return bool((left == right).all())


class TracedUnionFind(UnionFind):
    """UnionFind that remember what froze each class: slower, for a report.

    Classes are kept a second time without the frozen one, so that what froze one can be asked of its members.
    """

    def __init__(self) -> None:
        super().__init__()
        self._apart = UnionFind()
        self._causes: dict[int, int] = {}
        self._events = 0

    @override
    def fresh(self, how_many: int) -> Ids:
        self._apart.fresh(how_many)
        return super().fresh(how_many)

    @override
    def union(self, left: Ids, right: Ids) -> int:
        a, b = (self.find(x.ravel()) for x in np.broadcast_arrays(left, right))
        free = (a != 0) & (b != 0)
        self._apart.union(a[free], b[free])
        froze = super().union(left, right)
        if froze:
            for root in np.unique(self._apart.find(np.maximum(a, b)[(a == 0) != (b == 0)])).tolist():
                self._causes.setdefault(root, self._events)
            self._events += 1
        return froze

    def cause(self, ids: Ids) -> int | None:
        """The first of the unions that froze anything, by number, which froze one of `ids`; `None` if all are free."""
        found = [self._causes[r] for r in np.unique(self._apart.find(ids)).tolist() if r in self._causes]
        return min(found, default=None)
