"""Multiply-accumulates of one ATen operation.

A MAC is one multiplication with its addition, so half of what `torch.utils.flop_counter` counts. Counted
are convolutions and matrix products, attention's two included; biases, norms, activations, pooling and
data movement are not, and are named in `Cost.uncounted`.
"""

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor

PRODUCTS = {"mm": (0, 1), "addmm": (1, 2), "bmm": (0, 1), "baddbmm": (1, 2), "matmul": (0, 1)}


def macs_of(name: str, args: Sequence[Any], result: object) -> float | None:
    """MACs of the operation `name` on (meta) tensors; `None` where the operation is not one that is counted."""
    if not isinstance(result, Tensor):
        result = next((r for r in result if isinstance(r, Tensor)), None) if isinstance(result, tuple) else None
    if result is None:
        return None
    if name in {"convolution", "_convolution"}:
        weight, transposed = args[1], bool(args[6])
        return float((args[0].numel() if transposed else result.numel()) * math.prod(weight.shape[1:]))
    if name in PRODUCTS:
        return float(result.numel() * args[PRODUCTS[name][0]].shape[-1])
    if name == "linear":
        return float(result.numel() * args[1].shape[-1])
    if "scaled_dot_product" in name:
        query, key, value = args[:3]
        scores = math.prod(query.shape[:-1]) * key.shape[-2]
        return float(scores * (query.shape[-1] + value.shape[-1]))
    return None
