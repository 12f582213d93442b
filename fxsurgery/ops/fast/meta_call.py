"""One ATen operation on meta tensors, and its result."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True)
class Plain:
    """One ATen operation on meta tensors, and its result."""

    op: Any
    args: tuple[Any, ...]
    result: Tensor | tuple[Tensor, ...]
    before: "tuple[Plain, ...]" = ()
    """What is run first, on whose results it works."""


Meta = Callable[[Tensor | None], Any]
"""The meta tensor that stands for a parameter or buffer."""

FastModule = Callable[[Any, Tensor, Meta], Plain | Tensor | None]
"""What calling a module on a floating-point tensor does; its input where it does nothing, `None`: it has to be run."""

FastCall = Callable[..., Plain | Tensor | None]
"""The same for a function or method on its arguments, as if it overwrote nothing."""


def broadcast(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    """The shape of a pointwise operation on two tensors."""
    if left == right:
        return tuple(left)
    ndim = max(len(left), len(right))
    a, b = ((1,) * (ndim - len(s)) + tuple(s) for s in (left, right))
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))
