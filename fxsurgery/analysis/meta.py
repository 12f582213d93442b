"""Shapes of the commonest operations on meta tensors, without the detour over their reference implementations.

PyTorch works many shapes out by tracing a decomposition, a millisecond each. Where the result plainly has the
shape and type of the input, that is all there is to know.
"""

from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

TRUTH = frozenset(
    "eq ne lt le gt ge isnan isinf isfinite isposinf isneginf logical_not logical_and logical_or signbit".split()
)
"""Pointwise operations whose result has another type."""

BINARY = frozenset("add sub mul div".split())
NORMS = frozenset("native_batch_norm _native_batch_norm_legit_no_training _batch_norm_no_update".split())


def run_on_meta(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """What `op` gives on meta tensors."""
    name = op._schema.name.removeprefix("aten::")  # noqa: SLF001
    base = name.rstrip("_")
    first = args[0] if args else None
    if isinstance(first, Tensor) and first.is_floating_point():
        if base in NORMS:
            return torch.empty_like(first), first.new_empty((0,)), first.new_empty((0,))
        if torch.Tag.pointwise in op.tags and base not in TRUTH and not kwargs and _is_like_first(base, args):
            return first if name != base else torch.empty_like(first)
    return op(*args, **kwargs)


def _is_like_first(base: str, args: tuple[Any, ...]) -> bool:
    first, *others = args
    tensors = [a for a in others if isinstance(a, Tensor)]
    if not tensors:
        return all(isinstance(a, (int, float, str)) for a in others) and base in UNARY
    return base in BINARY and all(t.shape == first.shape and t.dtype == first.dtype for t in tensors)


UNARY = frozenset(
    "relu relu6 hardtanh hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu elu mish softplus exp sqrt rsqrt "
    "add sub mul div pow neg abs square clamp clamp_min clamp_max reciprocal erf sin cos log".split()
)
"""Pointwise operations on one tensor (and numbers) that keep its type."""
