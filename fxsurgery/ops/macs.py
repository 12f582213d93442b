"""Multiply-accumulates (MACs) of ATen contractions, computed from the arguments and the first result.

One MAC is one multiplication with its addition, half of what `torch.utils.flop_counter` counts.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

Args = Sequence[Any]
Macs = Callable[[Args, Tensor], float]


def product(left: int = 0) -> Macs:
    """Return a counter for a matrix product.

    Args:
        left: position of the left operand, whose last dim is summed over.
    """

    def count(args: Args, result: Tensor) -> float:
        return float(result.numel() * args[left].shape[-1])

    return count


def summed_product(args: Args, result: Tensor) -> float:
    """Count `addbmm`: a batched matrix product, summed over the batch."""
    return product(1)(args, result) * float(args[1].shape[0])


def outer_product(args: Args, result: Tensor) -> float:
    """Count `addr`: one MAC per entry."""
    del args
    return float(result.numel())


def linear(args: Args, result: Tensor) -> float:
    """Count `x @ weight.T`."""
    return float(result.numel() * args[1].shape[-1])


def convolution(args: Args, result: Tensor) -> float:
    """Count a convolution whose argument 6 says whether it is transposed."""
    return transposed_convolution(args, result) if args[6] else direct_convolution(args, result)


def direct_convolution(args: Args, result: Tensor) -> float:
    """Count a convolution: one kernel per output entry."""
    return float(result.numel() * math.prod(args[1].shape[1:]))


def transposed_convolution(args: Args, result: Tensor) -> float:
    """Count a transposed convolution: one kernel per input entry."""
    del result
    return float(args[0].numel() * math.prod(args[1].shape[1:]))


def time_major_convolution(args: Args, result: Tensor) -> float:
    """Count `conv_tbc`, whose weight is (kernel, inputs, outputs)."""
    return float(result.numel() * math.prod(args[1].shape[:2]))


def attention(args: Args, result: Tensor) -> float:
    """Count the two matrix products of attention."""
    del result
    query, key, value = args[:3]
    scores = math.prod(query.shape[:-1]) * key.shape[-2]
    return float(scores * (query.shape[-1] + value.shape[-1]))


def trilinear(args: Args, result: Tensor) -> float:
    """Count a bilinear form: one MAC per product of its three factors after broadcasting."""
    del result
    sizes = [list(tensor.shape) for tensor in args[:3]]
    for size, expanded in zip(sizes, args[3:6], strict=True):
        for dim in expanded:
            size.insert(dim, 1)
    return float(math.prod(map(max, *sizes)))


def recurrent(first: int, last: int | None) -> Macs:
    """Return a counter for a recurrent layer: each weight matrix is applied once per step.

    Args:
        first: position of the first weight argument, or of the list of all weights.
        last: position after the last weight argument; None for a list.
    """

    def count(args: Args, result: Tensor) -> float:
        del result
        weights = args[first] if last is None else args[first:last]
        steps = args[0].numel() // args[0].shape[-1]
        return float(steps * sum(w.numel() for w in weights if w.dim() == 2))

    return count


def whole_attention(args: Args, result: Tensor) -> float:
    """Count the input projections, the two products and the output projection of multi-head attention."""
    del result
    query, key = args[:2]
    width, rows, columns = args[3], query.numel() // query.shape[-1], key.numel() // key.shape[-1]
    return float(width * (2 * width * (rows + columns) + 2 * rows * key.shape[-2]))


def transformer_layer(args: Args, result: Tensor) -> float:
    """Count multi-head attention and the feed-forward network after it."""
    source, width = args[0], args[1]
    tokens = source.numel() // source.shape[-1]
    feed_forward = args[14].numel() + args[16].numel()
    return whole_attention((source, source, source, width), result) + float(tokens * feed_forward)
