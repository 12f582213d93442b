"""Nodes whose ATen operation and result shape are plain to see: no run through PyTorch's dispatcher is needed.

Running a module on meta tensors costs up to a millisecond, most of it Python that works out a shape. What
stands here is what such a run would show, for the layers that networks are made of; all else is run.
"""

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils import _pytree as pytree

ATEN = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Plain:
    """One ATen operation on meta tensors, and what it gives."""

    op: Any
    args: tuple[Any, ...]
    result: Tensor | tuple[Tensor, ...]
    before: "tuple[Plain, ...]" = ()
    """What is run first, on whose results it works."""


Meta = Callable[[Tensor | None], Any]
"""The meta tensor that stands for a parameter or buffer."""


def plain_module(module: nn.Module, args: Sequence[Any], meta: Meta) -> Plain | Tensor | None:
    """What calling `module` on `args` does; its input where it does nothing, `None` where it has to be run."""
    work_out = _MODULES.get(type(module))
    if work_out is None or len(args) != 1 or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    if module.training or module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001
        return None
    return work_out(module, args[0], meta)


def plain_function(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Plain | Tensor | None:  # noqa: ANN401
    """What calling a function, or a method of `args[0]` by its name, does; `None` where it has to be run."""
    work_out = _FUNCTIONS.get(target)
    if work_out is None or not args or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    return work_out(*args, **kwargs)


def computes_no_tensor(target: Any, args: Sequence[Any]) -> bool:  # noqa: ANN401
    """Whether a function, or a method of `args[0]`, plainly works on numbers and containers alone."""
    if target in _ON_SHAPES:
        return True
    if target is getattr:
        return args[1] in {"shape", "ndim", "dtype", "device"}
    if target is operator.getitem and isinstance(args[0], (tuple, list, dict)):
        return not isinstance(args[1], Tensor)
    plain = getattr(target, "__module__", None) in {"_operator", "math"}
    return plain and not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(args))


def _joined(op: Any, *, in_place: bool = False) -> "_Function":  # noqa: ANN401
    def work_out(left: Tensor, right: Any = None, **rest: Any) -> Plain | None:  # noqa: ANN401
        if rest or not left.is_floating_point():
            return None
        if isinstance(right, (int, float)) and not isinstance(right, bool):
            return Plain(op, (left, right), left if in_place else left.new_empty(left.shape))
        if not isinstance(right, Tensor) or right.dtype != left.dtype or not right.is_meta:
            return None
        shape = broadcast(left.shape, right.shape)
        return Plain(op, (left, right), left if in_place else left.new_empty(shape))

    return work_out


def _reshaped(reshape: Callable[..., Tensor]) -> "_Function":
    def work_out(x: Tensor, *args: Any, **kwargs: Any) -> Plain | None:  # noqa: ANN401
        result = reshape(x, *args, **kwargs)
        if result.dtype != x.dtype:
            return None
        return Plain(ATEN.view.default, (x, list(result.shape)), result)

    return work_out


def _permute(x: Tensor, *dims: Any, **rest: Any) -> Plain | None:  # noqa: ANN401
    if rest:
        return None
    order = list(dims[0]) if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else list(dims)
    return Plain(ATEN.permute.default, (x, order), x.permute(order))


def _transpose(x: Tensor, *dims: Any, **rest: Any) -> Plain | None:  # noqa: ANN401
    if rest:
        return None
    return Plain(ATEN.transpose.int, (x, *dims), x.transpose(*dims))


def _functional_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Plain | None:
    if weight.dim() != 2 or x.dtype != weight.dtype or x.shape[-1] != weight.shape[1]:
        return None
    return Plain(ATEN.linear.default, (x, weight, bias), x.new_empty((*x.shape[:-1], weight.shape[0])))


def _functional_layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Plain | None:
    shape = list(normalized_shape)
    if list(x.shape[-len(shape) :]) != shape:
        return None
    return Plain(ATEN.layer_norm.default, (x, shape, weight, bias, eps), x.new_empty(x.shape))


def _softmax(x: Tensor, dim: int | None = None, **rest: Any) -> Plain | None:  # noqa: ANN401
    if dim is None or rest.keys() - {"_stacklevel"} or not x.is_floating_point():
        return None
    return Plain(ATEN._softmax.default, (x, dim, False), x.new_empty(x.shape))  # noqa: SLF001


def _mean(
    x: Tensor,
    dim: int | Sequence[int] | None = None,
    keepdim: bool = False,  # noqa: FBT001, FBT002 -- as PyTorch has it
    **rest: Any,  # noqa: ANN401
) -> Plain | None:
    if rest or dim is None or dim == () or not x.is_floating_point():
        return None
    dims = [d % x.dim() for d in (dim if isinstance(dim, Sequence) else (dim,))]
    shape = [1 if d in dims else n for d, n in enumerate(x.shape) if keepdim or d not in dims]
    return Plain(ATEN.mean.dim, (x, dims, keepdim), x.new_empty(shape))


def _unbind(x: Tensor, dim: int = 0) -> Plain:
    return Plain(ATEN.unbind.int, (x, dim), x.unbind(dim))


def _attention(  # noqa: PLR0913, PLR0917 -- as PyTorch has it
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,  # noqa: FBT001, FBT002
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Plain | None:
    """Two batched products with a softmax between them: softmax(q kᵀ) v, the heads being part of the batch."""
    del is_causal, scale
    *batch, rows, width = query.shape
    columns, out = key.shape[-2], value.shape[-1]
    plain = list(key.shape) == [*batch, columns, width] and list(value.shape) == [*batch, columns, out]
    if dropout_p or enable_gqa or not batch or not plain or not query.dtype == key.dtype == value.dtype:
        return None
    if attn_mask is not None and broadcast((*batch, rows, columns), attn_mask.shape) != (*batch, rows, columns):
        return None
    steps, heads, new = list[Plain](), math.prod(batch), query.new_empty

    def run(op: Any, *args: Any, shape: Sequence[int]) -> Tensor:  # noqa: ANN401
        result = new(shape)
        steps.append(Plain(op, args, result))
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
    return Plain(last.op, last.args, last.result, tuple(before))


def _contiguous(x: Tensor, **rest: Any) -> Plain | None:  # noqa: ANN401
    return None if rest else Plain(ATEN.clone.default, (x,), x.contiguous())


def _activation(op: Any) -> "_Function":  # noqa: ANN401
    def work_out(x: Tensor, *_: Any, inplace: bool = False, **rest: Any) -> Plain:  # noqa: ANN401
        del rest
        return Plain(op, (x,), x if inplace else x.new_empty(x.shape))

    return work_out


def _dropped(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor | None:  # noqa: FBT001, FBT002
    """Dropout as PyTorch has it."""
    del p, inplace
    return None if training else x


def broadcast(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    """The shape of a pointwise operation on two tensors."""
    if left == right:
        return tuple(left)
    ndim = max(len(left), len(right))
    a, b = ((1,) * (ndim - len(s)) + tuple(s) for s in (left, right))
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def _convolution(module: Any, x: Tensor, meta: Meta) -> Plain | None:  # noqa: ANN401
    weight, padding = module.weight, module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str) or x.dim() != weight.dim():
        return None
    own = x.shape[1] == module.in_channels and x.dtype == weight.dtype
    if not own or "weight" not in module._parameters:  # noqa: SLF001 -- parametrised, it is computed
        return None
    space = [
        (size + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        for size, pad, spread, kernel, step in zip(
            x.shape[2:], padding, module.dilation, weight.shape[2:], module.stride, strict=True
        )
    ]
    rest = (list(module.stride), list(padding), list(module.dilation), False, [0] * len(space), module.groups)
    result = x.new_empty((x.shape[0], weight.shape[0], *space))
    return Plain(ATEN.convolution.default, (x, meta(weight), meta(module.bias), *rest), result)


def _batch_norm(module: Any, x: Tensor, meta: Meta) -> Plain | None:  # noqa: ANN401
    if module.running_mean is None or x.dim() < 2 or x.shape[1] != module.num_features:
        return None
    vectors = map(meta, (module.weight, module.bias, module.running_mean, module.running_var))
    args = (x, *vectors, module.momentum, module.eps)
    return Plain(ATEN._native_batch_norm_legit_no_training.default, args, x.new_empty(x.shape))  # noqa: SLF001


def _linear(module: Any, x: Tensor, meta: Meta) -> Plain | None:  # noqa: ANN401
    weight = module.weight
    if "weight" not in module._parameters or x.dtype != weight.dtype or x.shape[-1] != weight.shape[1]:  # noqa: SLF001
        return None
    result = x.new_empty((*x.shape[:-1], weight.shape[0]))
    return Plain(ATEN.linear.default, (x, meta(weight), meta(module.bias)), result)


def _layer_norm(module: Any, x: Tensor, meta: Meta) -> Plain | None:  # noqa: ANN401
    shape = list(module.normalized_shape)
    if list(x.shape[-len(shape) :]) != shape:
        return None
    args = (x, shape, meta(module.weight), meta(module.bias), module.eps)
    return Plain(ATEN.layer_norm.default, args, x.new_empty(x.shape))


def _to_one_place(module: Any, x: Tensor, meta: Meta) -> Plain | None:  # noqa: ANN401
    """Adaptive average pooling to size 1 is a mean, and PyTorch runs it as one."""
    del meta
    places = x.dim() - 2
    wanted = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * places
    if places != _PLACES[type(module)] or any(size != 1 for size in wanted):
        return None
    dims = list(range(-places, 0))
    return Plain(ATEN.mean.dim, (x, dims, True), x.new_empty((*x.shape[:2], *wanted)))


def _pointwise(op: Any) -> Callable[[Any, Tensor, Meta], Plain]:  # noqa: ANN401
    def work_out(module: Any, x: Tensor, meta: Meta) -> Plain:  # noqa: ANN401
        del module, meta
        return Plain(op, (x,), x.new_empty(x.shape))

    return work_out


def _nothing(module: Any, x: Tensor, meta: Meta) -> Tensor:  # noqa: ANN401
    del module, meta
    return x


_PLACES = {nn.AdaptiveAvgPool1d: 1, nn.AdaptiveAvgPool2d: 2, nn.AdaptiveAvgPool3d: 3}

_MODULES: dict[type, Callable[[Any, Tensor, Meta], Plain | Tensor | None]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), _batch_norm),
    **dict.fromkeys((nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.Identity), _nothing),
    **dict.fromkeys(_PLACES, _to_one_place),
    nn.Linear: _linear,
    nn.LayerNorm: _layer_norm,
    nn.ReLU: _pointwise(ATEN.relu.default),
    nn.ReLU6: _pointwise(ATEN.hardtanh.default),
    nn.Hardtanh: _pointwise(ATEN.hardtanh.default),
    nn.Hardswish: _pointwise(ATEN.hardswish.default),
    nn.Hardsigmoid: _pointwise(ATEN.hardsigmoid.default),
    nn.SiLU: _pointwise(ATEN.silu.default),
    nn.GELU: _pointwise(ATEN.gelu.default),
    nn.Sigmoid: _pointwise(ATEN.sigmoid.default),
    nn.Tanh: _pointwise(ATEN.tanh.default),
    nn.LeakyReLU: _pointwise(ATEN.leaky_relu.default),
    nn.ELU: _pointwise(ATEN.elu.default),
    nn.Mish: _pointwise(ATEN.mish.default),
    nn.Softplus: _pointwise(ATEN.softplus.default),
}

_Function = Callable[..., Plain | Tensor | None]

_FUNCTIONS: dict[Any, _Function] = {
    **dict.fromkeys((operator.add, torch.add, "add"), _joined(ATEN.add.Tensor)),
    **dict.fromkeys((operator.mul, torch.mul, "mul"), _joined(ATEN.mul.Tensor)),
    **dict.fromkeys((operator.sub, torch.sub, "sub"), _joined(ATEN.sub.Tensor)),
    **dict.fromkeys((operator.truediv, torch.div, "div"), _joined(ATEN.div.Tensor)),
    **dict.fromkeys((operator.iadd, "add_"), _joined(ATEN.add.Tensor, in_place=True)),
    **dict.fromkeys((operator.imul, "mul_"), _joined(ATEN.mul.Tensor, in_place=True)),
    **dict.fromkeys((torch.flatten, "flatten"), _reshaped(torch.flatten)),
    **dict.fromkeys((torch.reshape, "reshape"), _reshaped(Tensor.reshape)),
    **dict.fromkeys((torch.unflatten, "unflatten"), _reshaped(Tensor.unflatten)),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), _reshaped(Tensor.unsqueeze)),
    "view": _reshaped(Tensor.view),
    **dict.fromkeys((torch.permute, "permute"), _permute),
    **dict.fromkeys((torch.transpose, "transpose"), _transpose),
    **dict.fromkeys((functional.softmax, torch.softmax, "softmax"), _softmax),
    "contiguous": _contiguous,
    **dict.fromkeys((torch.mean, "mean"), _mean),
    **dict.fromkeys((torch.unbind, "unbind"), _unbind),
    functional.scaled_dot_product_attention: _attention,
    functional.linear: _functional_linear,
    functional.layer_norm: _functional_layer_norm,
    functional.dropout: _dropped,
    **dict.fromkeys((functional.relu, torch.relu, "relu"), _activation(ATEN.relu.default)),
    **dict.fromkeys((functional.silu,), _activation(ATEN.silu.default)),
    **dict.fromkeys((functional.gelu,), _activation(ATEN.gelu.default)),
    **dict.fromkeys((functional.hardswish,), _activation(ATEN.hardswish.default)),
    **dict.fromkeys((functional.hardsigmoid,), _activation(ATEN.hardsigmoid.default)),
    **dict.fromkeys((torch.sigmoid, "sigmoid"), _activation(ATEN.sigmoid.default)),
    **dict.fromkeys((torch.tanh, "tanh"), _activation(ATEN.tanh.default)),
}

_ON_SHAPES = {"size", "dim", "numel", "ndimension", "nelement", torch._assert}  # noqa: SLF001
