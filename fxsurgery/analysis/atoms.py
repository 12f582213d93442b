"""Union-find over *atoms*, the smallest things that can be removed from a tensor's dim.

Atom 0 is *frozen*: what is united with it must stay. The root of a class is its least atom, so 0 is
always the root of its class and freezing is a union like any other. All operations take and give numpy
arrays of atoms and work on whole arrays at once.
"""

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
FROZEN: Ids = np.zeros(1, np.int64)


class Atoms:
    """The atoms of one program, and which of them are one."""

    def __init__(self) -> None:
        self._parent: Ids = np.zeros(1, np.int64)
        self.count = 1

    def fresh(self, how_many: int) -> Ids:
        """New atoms, each its own class."""
        if self.count + how_many > len(self._parent):
            room = np.zeros(max(how_many, len(self._parent)), np.int64)
            self._parent = np.concatenate([self._parent, room])
        new = np.arange(self.count, self.count + how_many, dtype=np.int64)
        self._parent[new] = new
        self.count += how_many
        return new

    def find(self, ids: Ids) -> Ids:
        """The root of each id, in the shape of `ids`."""
        roots = self._parent[ids]
        while True:
            above = self._parent[roots]
            if (above == roots).all():
                break
            roots = above
        self._parent[ids] = roots
        return roots

    def union(self, left: Ids, right: Ids) -> int:
        """Make `left` and `right` one, element by element under broadcasting; how many froze by it."""
        a, b = (x.ravel() for x in np.broadcast_arrays(left, right))
        froze = 0
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return froze
            a, b = a[differ], b[differ]
            froze += len(np.unique(np.maximum(a, b)[(a == 0) | (b == 0)]))
            self._parent[np.maximum(a, b)] = np.minimum(a, b)
