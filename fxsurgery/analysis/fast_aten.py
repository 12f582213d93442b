"""Shapes of the most common operations on meta tensors, without running their reference implementations.

PyTorch infers many shapes by tracing a decomposition, which takes a millisecond each. If the result always has the
shape and type of the input, no tracing is needed.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fxsurgery.ops import registry
from fxsurgery.ops.fast.meta_call import broadcast
from fxsurgery.ops.joining import CAT
from fxsurgery.ops.operator import Kind, Operator


def run_on_meta(op: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the result of `op` on meta tensors."""
    declared, first = registry.of_aten(op), args[0] if args else None
    if declared is CAT and not kwargs and (shape := _joined(*args)) is not None:
        return args[0][0].new_empty(shape)
    if declared is not None and isinstance(first, Tensor) and first.is_floating_point() and not kwargs:
        known = _known(op, declared, args)
        if known is not None:
            return known
    return op(*args, **kwargs)


def _known(op: OpOverload, declared: Operator, args: tuple[Any, ...]) -> Any:  # noqa: ANN401
    """Return the result if it always has the type of the first argument; `None` for any other operation."""
    first, returns = args[0], op._schema.returns  # noqa: SLF001
    if declared.statistics in {"channel", "trailing"} and len(returns) > 1:
        return first.new_empty(first.shape), *(first.new_empty((0,)) for _ in returns[1:])
    if declared.kind is Kind.SCAN and declared.keeps_dtype and not any(isinstance(a, Tensor) for a in args[1:]):
        return first.new_empty(first.shape)
    if declared.kind is Kind.RESAMPLING and len(args) > 1 and isinstance(args[1], (list, tuple)):
        return first.new_empty((*first.shape[:2], *args[1]))
    if torch.Tag.pointwise in op.tags and declared.keeps_dtype and (shape := _shape(declared, args)) is not None:
        return first if returns[0].alias_info is not None else first.new_empty(shape)
    return None


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> tuple[int, ...] | None:
    """Return the shape of a concatenation; `None` unless all parts have the same type and number of dims."""
    first = tensors[0]
    if any(t.dtype != first.dtype or t.dim() != first.dim() or not t.dim() for t in tensors):
        return None
    shape = list(first.shape)
    shape[dim] = sum(t.shape[dim] for t in tensors)
    return tuple(shape)


def _shape(declared: Operator, args: tuple[Any, ...]) -> tuple[int, ...] | None:
    """Return the shape of a pointwise operation that keeps the type of its first input; `None` if it must be run."""
    first, *others = args
    tensors = [a for a in others if isinstance(a, Tensor)]
    if not tensors:
        return tuple(first.shape) if all(isinstance(a, (int, float, str)) for a in others) else None
    if declared.kind is Kind.ARITHMETIC and len(tensors) == 1 and tensors[0].dtype == first.dtype:
        return broadcast(first.shape, tensors[0].shape)
    return None
