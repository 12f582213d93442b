"""Union-find over *atoms*, the smallest parts that can be removed from a dim of a tensor.

Atom 0 is *frozen*: everything united with it must stay. The root of a set is its smallest atom, so 0 is always the
root of its set, and freezing is a union like any other. All operations take and return NumPy arrays of atoms.
"""

import numpy as np
from numpy.typing import NDArray
from typing_extensions import override

Ids = NDArray[np.int64]
FROZEN: Ids = np.zeros(1, np.int64)

_SMALL = 4096
"""Size up to which arrays are compared as bytes."""


class UnionFind:
    """The atoms of one program, grouped into units that must be removed together."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, np.int64)
        self.count = 1
        self.version = 0
        """Counter that increases with every union that changes anything."""

    def fresh(self, count_new: int) -> Ids:
        """Return new atoms, each in a set of its own."""
        if self.count + count_new > len(self._parent):
            self._parent = np.concatenate([self._parent, np.zeros(max(count_new, len(self._parent)), np.int64)])
        new = np.arange(self.count, self.count + count_new, dtype=np.int64)
        self._parent[new] = new
        self.count += count_new
        return new

    def find(self, ids: Ids) -> Ids:
        """Return the root of each atom, in the shape of `ids`."""
        parent = self._parent
        roots = parent[ids]
        parents = parent[roots]
        if _same(parents, roots):
            return roots
        while not _same(parents, roots):
            roots, parents = parents, parent[parents]
        parent[ids] = roots
        return roots

    def find_one(self, atom: int) -> int:
        """Return the root of one atom."""
        item = self._parent.item
        while (parents := item(atom)) != atom:
            atom = parents
        return atom

    def union(self, left: Ids, right: Ids) -> int:
        """Unite `left` with `right` elementwise, with broadcasting; return how many sets this froze."""
        if left.shape == right.shape:
            a, b = left.ravel(), right.ravel()
        else:
            a, b = (x.ravel() for x in np.broadcast_arrays(left, right))
        newly_frozen = 0
        while True:
            a, b = self.find(a), self.find(b)
            if _same(a, b):
                return newly_frozen
            differ = a != b
            self.version += 1
            a, b = a[differ], b[differ]
            high, low = np.maximum(a, b), np.minimum(a, b)
            frozen = high[low == 0]
            newly_frozen += len(set(frozen.tolist()))
            self._parent[high] = low


def _same(left: Ids, right: Ids) -> bool:
    """Return True if two arrays of the same shape are equal; most are small and compared fastest as bytes."""
    if left.size < _SMALL:
        return left.tobytes() == right.tobytes()
    return bool((left == right).all())


class TracedUnionFind(UnionFind):
    """A union-find that records which union froze each set; slower, for reports.

    A second union-find without the frozen set keeps the members of frozen sets distinguishable.
    """

    def __init__(self) -> None:
        super().__init__()
        self._without_frozen = UnionFind()
        self._causes: dict[int, int] = {}
        self._events = 0

    @override
    def fresh(self, count_new: int) -> Ids:
        self._without_frozen.fresh(count_new)
        return super().fresh(count_new)

    @override
    def union(self, left: Ids, right: Ids) -> int:
        a, b = (self.find(x.ravel()) for x in np.broadcast_arrays(left, right))
        free = (a != 0) & (b != 0)
        self._without_frozen.union(a[free], b[free])
        newly_frozen = super().union(left, right)
        if newly_frozen:
            for root in np.unique(self._without_frozen.find(np.maximum(a, b)[(a == 0) != (b == 0)])).tolist():
                self._causes.setdefault(root, self._events)
            self._events += 1
        return newly_frozen

    def cause(self, ids: Ids) -> int | None:
        """Return the number of the first freezing union that froze one of `ids`; None if all are free."""
        found = [self._causes[r] for r in np.unique(self._without_frozen.find(ids)).tolist() if r in self._causes]
        return min(found, default=None)
