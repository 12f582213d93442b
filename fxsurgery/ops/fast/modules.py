"""ATen operations and result shapes of module calls on one meta tensor, in eval mode."""

from typing import Any

import torch
from torch import Tensor

from fxsurgery.ops.fast.meta_call import FastModule, Meta, MetaCall

ATEN = torch.ops.aten


def convolution(module: Any, x: Tensor, meta: Meta) -> MetaCall | None:  # noqa: ANN401
    """Return the call of a convolution with zero padding on batched input."""
    weight, padding = module.weight, module.padding
    if module.padding_mode != "zeros" or isinstance(padding, str) or x.dim() != weight.dim():
        return None
    own = x.shape[1] == module.in_channels and x.dtype == weight.dtype
    if not own or "weight" not in module._parameters:  # noqa: SLF001 -- parametrized, it is computed
        return None
    space = [
        (size + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        for size, pad, spread, kernel, step in zip(
            x.shape[2:], padding, module.dilation, weight.shape[2:], module.stride, strict=True
        )
    ]
    rest = (list(module.stride), list(padding), list(module.dilation), False, [0] * len(space), module.groups)
    result = x.new_empty((x.shape[0], weight.shape[0], *space))
    return MetaCall(ATEN.convolution.default, (x, meta(weight), meta(module.bias), *rest), result)


def batch_norm(module: Any, x: Tensor, meta: Meta) -> MetaCall | None:  # noqa: ANN401
    """Return the call of a batch norm with running statistics."""
    if module.running_mean is None or x.dim() < 2 or x.shape[1] != module.num_features:
        return None
    vectors = map(meta, (module.weight, module.bias, module.running_mean, module.running_var))
    args = (x, *vectors, module.momentum, module.eps)
    return MetaCall(ATEN._native_batch_norm_legit_no_training.default, args, x.new_empty(x.shape))  # noqa: SLF001


def linear(module: Any, x: Tensor, meta: Meta) -> MetaCall | None:  # noqa: ANN401
    """Return the call of a linear layer."""
    weight = module.weight
    if "weight" not in module._parameters or x.dtype != weight.dtype or x.shape[-1] != weight.shape[1]:  # noqa: SLF001
        return None
    result = x.new_empty((*x.shape[:-1], weight.shape[0]))
    return MetaCall(ATEN.linear.default, (x, meta(weight), meta(module.bias)), result)


def layer_norm(module: Any, x: Tensor, meta: Meta) -> MetaCall | None:  # noqa: ANN401
    """Return the call of a layer norm."""
    shape = list(module.normalized_shape)
    if list(x.shape[-len(shape) :]) != shape:
        return None
    args = (x, shape, meta(module.weight), meta(module.bias), module.eps)
    return MetaCall(ATEN.layer_norm.default, args, x.new_empty(x.shape))


def global_average(rank: int) -> FastModule:
    """Return the fast call of adaptive average pooling to size 1, which PyTorch runs as a mean."""

    def fast_module(module: Any, x: Tensor, meta: Meta) -> MetaCall | None:  # noqa: ANN401
        del meta
        output_size = module.output_size if isinstance(module.output_size, tuple) else (module.output_size,) * rank
        if x.dim() != rank + 2 or any(size != 1 for size in output_size):
            return None
        return MetaCall(ATEN.mean.dim, (x, list(range(-rank, 0)), True), x.new_empty((*x.shape[:2], *output_size)))

    return fast_module


def maximum(rank: int) -> FastModule | None:
    """Return the fast call of max pooling in 2 or 3 dims; None for 1 dim, which PyTorch runs in 2 dims."""
    op = {2: ATEN.max_pool2d_with_indices.default, 3: ATEN.max_pool3d_with_indices.default}.get(rank)

    def fast_module(module: Any, x: Tensor, meta: Meta) -> MetaCall | None:  # noqa: ANN401
        del meta
        if module.return_indices or module.ceil_mode or x.dim() != rank + 2:
            return None
        sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
        kernel, stride, padding, dilation = (list(n) if isinstance(n, tuple) else [n] * rank for n in sizes)
        space = [
            (size + 2 * pad - spread * (wide - 1) - 1) // step + 1
            for size, pad, spread, wide, step in zip(x.shape[2:], padding, dilation, kernel, stride, strict=True)
        ]
        return MetaCall(op, (x, kernel, stride, padding, dilation), x.new_empty((*x.shape[:2], *space)))

    return None if op is None else fast_module


def flattened(module: Any, x: Tensor, meta: Meta) -> MetaCall:  # noqa: ANN401
    """Return the call that flattens dims into one."""
    del meta
    result = x.flatten(module.start_dim, module.end_dim)
    return MetaCall(ATEN.view.default, (x, list(result.shape)), result)


def applied(op: Any) -> FastModule:  # noqa: ANN401 -- an ATen operation
    """Return the fast call of an elementwise function."""

    def fast_module(module: Any, x: Tensor, meta: Meta) -> MetaCall:  # noqa: ANN401
        del module, meta
        return MetaCall(op, (x,), x.new_empty(x.shape))

    return fast_module


def nothing(module: Any, x: Tensor, meta: Meta) -> Tensor:  # noqa: ANN401
    """Return the input, as dropout does in eval mode."""
    del module, meta
    return x
