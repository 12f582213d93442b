"""Nodes whose ATen operation and result shape are plain to see: no run through PyTorch's dispatcher is needed.

Running a module on meta tensors costs up to a millisecond, most of it Python that works out a shape. What
stands here is what such a run would show, for the layers that networks are made of; all else is run.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ATEN = torch.ops.aten


@dataclass(frozen=True)
class Plain:
    """One ATen operation on meta tensors, and what it gives."""

    op: Any
    args: tuple[Any, ...]
    result: Tensor


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


def plain_function(target: Any, args: Sequence[Any]) -> Plain | None:  # noqa: ANN401
    """What calling a function on positional `args` does; `None` where it has to be run."""
    if len(args) == 2 and (op := _JOINS.get(target)) is not None:
        left, right = args
        if isinstance(left, Tensor) and isinstance(right, Tensor) and _are_alike(left, right):
            in_place = target in _IN_PLACE
            result = left if in_place else left.new_empty(broadcast(left.shape, right.shape))
            return Plain(op, (left, right), result)
    return None


def _are_alike(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and left.is_floating_point() and left.is_meta and right.is_meta


def broadcast(left: Sequence[int], right: Sequence[int]) -> tuple[int, ...]:
    """The shape of a pointwise operation on two tensors."""
    if left == right:
        return tuple(left)
    ndim = max(len(left), len(right))
    a, b = ((1,) * (ndim - len(s)) + tuple(s) for s in (left, right))
    return tuple(y if x == 1 else x for x, y in zip(a, b, strict=True))


def _convolution(module: Any, x: Tensor, meta: Meta) -> Plain | None:
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


def _batch_norm(module: Any, x: Tensor, meta: Meta) -> Plain | None:
    if module.running_mean is None or x.dim() < 2 or x.shape[1] != module.num_features:
        return None
    vectors = map(meta, (module.weight, module.bias, module.running_mean, module.running_var))
    args = (x, *vectors, module.momentum, module.eps)
    return Plain(ATEN._native_batch_norm_legit_no_training.default, args, x.new_empty(x.shape))  # noqa: SLF001


def _linear(module: Any, x: Tensor, meta: Meta) -> Plain | None:
    weight = module.weight
    if "weight" not in module._parameters or x.dtype != weight.dtype or x.shape[-1] != weight.shape[1]:  # noqa: SLF001
        return None
    result = x.new_empty((*x.shape[:-1], weight.shape[0]))
    return Plain(ATEN.linear.default, (x, meta(weight), meta(module.bias)), result)


def _layer_norm(module: Any, x: Tensor, meta: Meta) -> Plain | None:
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
    return lambda module, x, meta: Plain(op, (x,), x.new_empty(x.shape))


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

_IN_PLACE = {operator.iadd, operator.imul, operator.isub}
_JOINS: dict[Any, Any] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add), ATEN.add.Tensor),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), ATEN.mul.Tensor),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub), ATEN.sub.Tensor),
}
