"""ATen operations and result shapes of function and method calls on meta tensors."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fxsurgery.ops.fast.meta_call import FastCall, MetaCall, broadcast

ATEN = torch.ops.aten


def elementwise(op: Any) -> FastCall:  # noqa: ANN401 -- an ATen operation
    """Return the fast call of an elementwise function of two tensors of one dtype, or of a tensor and a number."""

    def fast_call(left: Tensor, right: Any = None, **rest: Any) -> MetaCall | None:  # noqa: ANN401
        if rest or not left.is_floating_point():
            return None
        if isinstance(right, (int, float)) and not isinstance(right, bool):
            return MetaCall(op, (left, right), left.new_empty(left.shape))
        if not isinstance(right, Tensor) or right.dtype != left.dtype or not right.is_meta:
            return None
        return MetaCall(op, (left, right), left.new_empty(broadcast(left.shape, right.shape)))

    return fast_call


def reshaped(reshape: Callable[..., Tensor]) -> FastCall:
    """Return the fast call of a function that keeps all entries in order, which is a view."""

    def fast_call(x: Tensor, *args: Any, **kwargs: Any) -> MetaCall | None:  # noqa: ANN401
        result = reshape(x, *args, **kwargs)
        if result.dtype != x.dtype:
            return None
        return MetaCall(ATEN.view.default, (x, list(result.shape)), result)

    return fast_call


def permute(x: Tensor, *dims: Any, **rest: Any) -> MetaCall | None:  # noqa: ANN401
    """Return the call of a permutation of dims."""
    if rest:
        return None
    order = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else list(dims)
    return MetaCall(ATEN.permute.default, (x, order), x.permute(order))


def transpose(x: Tensor, *dims: Any, **rest: Any) -> MetaCall | None:  # noqa: ANN401
    """Return the call of a transposition of two dims."""
    if rest:
        return None
    return MetaCall(ATEN.transpose.int, (x, *dims), x.transpose(*dims))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> MetaCall | None:
    """Return the call of a linear layer; None if the shapes or dtypes need a run."""
    if weight.dim() != 2 or x.dtype != weight.dtype or x.shape[-1] != weight.shape[1]:
        return None
    return MetaCall(ATEN.linear.default, (x, weight, bias), x.new_empty((*x.shape[:-1], weight.shape[0])))


def layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> MetaCall | None:
    """Return the call of a layer norm; None if the shapes do not match."""
    shape = list(normalized_shape)
    if list(x.shape[-len(shape) :]) != shape:
        return None
    return MetaCall(ATEN.layer_norm.default, (x, shape, weight, bias, eps), x.new_empty(x.shape))


def softmax(x: Tensor, dim: int | None = None, *more: Any, **rest: Any) -> MetaCall | None:  # noqa: ANN401
    """Return the call of a softmax that keeps the dtype."""
    if dim is None or more or rest.keys() - {"_stacklevel"} or not x.is_floating_point():
        return None
    return MetaCall(ATEN._softmax.default, (x, dim, False), x.new_empty(x.shape))  # noqa: SLF001


def mean(
    x: Tensor,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,  # noqa: FBT001, FBT002 -- as PyTorch has it
    **rest: Any,  # noqa: ANN401
) -> MetaCall | None:
    """Return the call of a mean over some dims."""
    if rest or dim is None or dim == () or not x.is_floating_point():
        return None
    dims = [d % x.dim() for d in (dim if isinstance(dim, Sequence) else (dim,))]
    shape = [1 if d in dims else n for d, n in enumerate(x.shape) if keepdim or d not in dims]
    return MetaCall(ATEN.mean.dim, (x, dims, keepdim), x.new_empty(shape))


def unbind(x: Tensor, dim: int = 0) -> MetaCall:
    """Return the call that splits a tensor into its entries along a dim."""
    return MetaCall(ATEN.unbind.int, (x, dim), x.unbind(dim))


def attention(  # noqa: PLR0913, PLR0917 -- as PyTorch has it
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> MetaCall | None:
    """Return attention as two batched products with a softmax in between: softmax(q kᵀ) v, with heads in the batch."""
    del is_causal, scale
    *batch, rows, width = query.shape
    columns, out = key.shape[-2], value.shape[-1]
    plain = list(key.shape) == [*batch, columns, width] and list(value.shape) == [*batch, columns, out]
    if dropout_p or enable_gqa or not batch or not plain or not query.dtype == key.dtype == value.dtype:
        return None
    if attn_mask is not None and broadcast((*batch, rows, columns), attn_mask.shape) != (*batch, rows, columns):
        return None
    steps, heads, new = list[MetaCall](), math.prod(batch), query.new_empty

    def run(op: Any, *args: Any, shape: Sequence[int]) -> Tensor:  # noqa: ANN401
        result = new(shape)
        steps.append(MetaCall(op, args, result))
        return result

    def view(x: Tensor, *shape: int) -> Tensor:
        return run(ATEN.view.default, x, list(shape), shape=shape)

    turned = run(ATEN.transpose.int, key, -2, -1, shape=(*batch, width, columns))
    stacks = view(query, heads, rows, width), view(turned, heads, width, columns)
    scores = view(run(ATEN.bmm.default, *stacks, shape=(heads, rows, columns)), *batch, rows, columns)
    if attn_mask is not None:
        scores = run(ATEN.add.Tensor, scores, attn_mask, shape=scores.shape)
    weights = run(ATEN._safe_softmax.default, scores, -1, shape=scores.shape)  # noqa: SLF001
    stacks = view(weights, heads, rows, columns), view(value, heads, columns, out)
    view(run(ATEN.bmm.default, *stacks, shape=(heads, rows, out)), *batch, rows, out)
    *before, last = steps
    return MetaCall(last.op, last.args, last.result, tuple(before))


def contiguous(x: Tensor, **rest: Any) -> MetaCall | None:  # noqa: ANN401
    """Return the call of a contiguous copy."""
    return None if rest else MetaCall(ATEN.clone.default, (x,), x.contiguous())


def channel_shuffle(x: Tensor, groups: int) -> MetaCall:
    """Return the call of a channel shuffle, which PyTorch runs as several steps under its other name."""
    return MetaCall(ATEN.channel_shuffle.default, (x, groups), x.new_empty(x.shape))


def applied(op: Any) -> FastCall:  # noqa: ANN401 -- an ATen operation
    """Return the fast call of an elementwise function that keeps the dtype."""

    def fast_call(x: Tensor, *_: Any, inplace: bool = False, **rest: Any) -> MetaCall | None:  # noqa: ANN401
        del rest
        return MetaCall(op, (x,), x if inplace else x.new_empty(x.shape)) if x.is_floating_point() else None

    return fast_call


def dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:  # noqa: FBT001, FBT002
    """Return the input in eval mode; None in train mode, which needs a run."""
    del p, inplace
    return None if training else x
