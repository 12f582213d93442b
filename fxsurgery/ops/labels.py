"""What is known of a tensor: along which dims its entries belong to which removable units.

A tensor carries *planes*. A plane is an integer array with the tensor's number of dims, of size 1 along
every dim on which the label does not depend; its entries are atoms. A conv's output (batch, channels,
height, width) carries one plane of shape (1, channels, 1, 1).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from fxsurgery.ops.union_find import Ids


@dataclass(slots=True)
class Labels:
    """The abstract value of one tensor: its shape and its planes, at most one for each dim in the end."""

    shape: tuple[int, ...]
    planes: list[Ids] = field(default_factory=list)
    version: int = -1
    """The version of the atoms that the planes were last brought up to."""


def varying(plane: Ids) -> list[int]:
    """The dims along which `plane` varies."""
    return [dim for dim, size in enumerate(plane.shape) if size > 1]


def is_vector(plane: Ids) -> bool:
    """Whether `plane` varies along one dim at most."""
    return max(plane.shape, default=1) == plane.size


def along(ids: Ids, dim: int, ndim: int) -> Ids:
    """`ids` as a plane of `ndim` dims that varies along `dim` alone."""
    return ids.reshape([-1 if d == dim else 1 for d in range(ndim)])


def padded(plane: Ids, ndim: int) -> Ids:
    """`plane` with leading dims of size 1, as broadcasting adds them."""
    return plane.reshape([1] * (ndim - plane.ndim) + list(plane.shape))


def first_along(plane: Ids, kept: Sequence[int]) -> Ids:
    """The part of `plane` at index 0 of every dim but those `kept`."""
    return plane[tuple(slice(None) if d in kept else slice(0, 1) for d in range(plane.ndim))]


def is_frozen(ids: Ids) -> bool:
    """Whether roots `ids` are all frozen."""
    return not ids.any()
