"""Types of the fast path: an ATen operation on meta tensors with its result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class MetaCall:
    """One ATen operation on meta tensors, with its result."""

    op: Any
    args: tuple[Any, ...]
    result: Tensor | tuple[Tensor, ...]
    before: "tuple[MetaCall, ...]" = ()
    """Operations that run before it and compute its inputs."""


Meta = Callable[[Tensor | None], Any]
"""Returns the meta tensor for a parameter or buffer."""

FastModule = Callable[[Any, Tensor, Meta], MetaCall | Tensor | None]
"""Returns the call of a module on a floating-point tensor: the input if it does nothing, None if it must be run."""

FastCall = Callable[..., MetaCall | Tensor | None]
"""Returns the same for a function or method with its arguments, ignoring in-place variants."""


def broadcast(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    """Return the broadcast shape of two shapes."""
    if left == right:
        return tuple(left)
    ndim = max(len(left), len(right))
    a, b = ((1,) * (ndim - len(s)) + tuple(s) for s in (left, right))
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))
