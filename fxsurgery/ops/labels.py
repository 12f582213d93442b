"""Labels of a tensor: which of its entries belong to which removable units.

The labels of a tensor are *planes*. A plane is an integer array with as many dims as the tensor and size 1 along every
dim on which the label does not depend; its entries are atoms (see `fxsurgery.ops.union_find`). The output of a
convolution (batch, channels, height, width) has one plane of shape (1, channels, 1, 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fxsurgery.ops.union_find import Ids


@dataclass(slots=True)
class Labels:
    """The abstract value of one tensor: its shape, and its planes, finally at most one per dim."""

    shape: tuple[int, ...]
    planes: list[Ids] = field(default_factory=list)
    version: int = -1
    """The version of the union-find up to which the planes are current."""


def varying(plane: Ids) -> list[int]:
    """Return the dims along which `plane` varies."""
    return [dim for dim, size in enumerate(plane.shape) if size > 1]


def is_vector(plane: Ids) -> bool:
    """Return True if `plane` varies along at most one dim."""
    return max(plane.shape, default=1) == plane.size


def along(ids: Ids, dim: int, ndim: int) -> Ids:
    """Return `ids` as a plane with `ndim` dims that varies along `dim` only."""
    return ids.reshape([-1 if d == dim else 1 for d in range(ndim)])


def padded(plane: Ids, ndim: int) -> Ids:
    """Return `plane` with leading dims of size 1, as in broadcasting."""
    return plane.reshape([1] * (ndim - plane.ndim) + list(plane.shape))


def first_along(plane: Ids, kept: Sequence[int]) -> Ids:
    """Return `plane` at index 0 of every dim except those in `kept`."""
    return plane[tuple(slice(None) if d in kept else slice(0, 1) for d in range(plane.ndim))]


def is_frozen(ids: Ids) -> bool:
    """Return True if all `ids`, which must be roots, are frozen."""
    return not ids.any()
