"""Shapes of the commonest operations on meta tensors, without the detour over their reference implementations.

PyTorch works many shapes out by tracing a decomposition, a millisecond each. Where the result plainly has the
shape and type of the input, that is all there is to know.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fxsurgery.analysis.fast_shapes import broadcast

UNARY = frozenset(
    "relu relu6 hardtanh hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu elu mish softplus exp sqrt rsqrt "
    "add sub mul div pow neg abs square clamp clamp_min clamp_max reciprocal erf sin cos log".split()
)
"""Pointwise operations on one tensor (and numbers) that keep its type."""

BINARY = frozenset("add sub mul div".split())
BATCH_NORMS = frozenset("native_batch_norm _native_batch_norm_legit_no_training _batch_norm_no_update".split())
_CAT = torch.ops.aten.cat.default
SAME_SHAPE = frozenset("_softmax _safe_softmax softmax".split())


def run_on_meta(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """What `op` gives on meta tensors."""
    first = args[0] if args else None
    if op is _CAT and not kwargs and (shape := _joined(*args)) is not None:
        return args[0][0].new_empty(shape)
    if isinstance(first, Tensor) and first.is_floating_point() and not kwargs:
        known = _known(op, args)
        if known is not None:
            return known
    return op(*args, **kwargs)


def _known(op: OpOverload, args: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """What plainly has the type of the first argument; `None` for any other operation."""
    first = args[0]
    name = op._schema.name.removeprefix("aten::")  # noqa: SLF001
    base = name.rstrip("_") if not name.startswith("_") else name
    if base in BATCH_NORMS or base == "native_layer_norm":
        return first.new_empty(first.shape), first.new_empty((0,)), first.new_empty((0,))
    if base in SAME_SHAPE and not any(isinstance(a, Tensor) for a in args[1:]):
        return first.new_empty(first.shape)
    if base.startswith("upsample") and len(args) > 1 and isinstance(args[1], (list, tuple)):
        return first.new_empty((*first.shape[:2], *args[1]))
    if torch.Tag.pointwise in op.tags and (shape := _shape(base, args)) is not None:
        if name != base:
            return first
        return first.new_empty(shape)
    return None


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> tuple[int, ...] | None:
    """The shape of a concatenation; `None` unless all parts have one type and number of dims."""
    first = tensors[0]
    if any(t.dtype != first.dtype or t.dim() != first.dim() or not t.dim() for t in tensors):
        return None
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return tuple(shape)


def _shape(base: str, args: tuple[Any, ...]) -> tuple[int, ...] | None:
    """The shape of a pointwise operation that keeps the type of its first input; `None` for any other."""
    first, *others = args
    tensors = [a for a in others if isinstance(a, Tensor)]
    if not tensors:
        plain = base in UNARY and all(isinstance(a, (int, float, str)) for a in others)
        return tuple(first.shape) if plain else None
    if base in BINARY and len(tensors) == 1 and tensors[0].dtype == first.dtype:
        return broadcast(first.shape, tensors[0].shape)
    return None
