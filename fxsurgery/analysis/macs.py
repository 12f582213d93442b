"""Multiply-accumulates of one ATen operation, according to its declaration.

A MAC is one multiplication with its addition, so half of the count of `torch.utils.flop_counter`. Counted
are convolutions and matrix products: attention's two, the steps of recurrent layers, products with vectors,
bilinear forms, pairwise distances (one MAC a feature). Not counted by convention are biases, norms, activations
and all other elementwise operations (including a product that is multiplied and summed by hand), reductions,
pooling and resampling, lookups and data movement; they are named in `Cost.uncounted`. The MACs
of all other operations are unknown: transforms, decompositions and solvers, sparse and quantized products,
operations of other libraries. These are named in `Cost.unknown_macs`.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from fxsurgery.ops import registry
from fxsurgery.ops.macs import Args
from fxsurgery.ops.rules.call import base_name


def macs_of(op: OpOverload, args: Args, kwargs: dict[str, Any], result: object) -> float | None:
    """Return the MACs of `op` on (meta) tensors; `None` if it has none by the convention, or if they are unknown."""
    declared = registry.of_aten(op)
    first = _first_tensor(result)
    if first is None:
        return None
    if declared is not None and declared.macs is not None:
        return declared.macs(args, first)
    return macs_by_torch(op.overloadpacket, args, kwargs, result)


def macs_by_torch(op: Any, args: Args, kwargs: dict[str, Any], result: object) -> float | None:  # noqa: ANN401
    """Return the MACs by PyTorch's formula for `op`; `None` if it has no formula."""
    from torch.utils.flop_counter import flop_registry  # noqa: PLC0415 -- it imports triton

    registered = flop_registry.get(op)
    return None if registered is None else float(registered(*args, **kwargs, out_val=result)) / 2


def has_unknown_macs(op: OpOverload) -> bool:
    """Return True if `op`, whose MACs cannot be counted, may have some."""
    if (declared := registry.of_aten(op)) is not None:
        return declared.multiplies and declared.macs is None
    return _may_multiply(op)


@functools.cache
def _may_multiply(op: OpOverload) -> bool:
    """Return True if an undeclared operation may have MACs: it is neither a view, nor a copy, nor pointwise."""
    if op.is_view:
        return False
    name = base_name(op)
    if "::" in name:
        return True
    elementwise = name.startswith("_foreach") and name != "_foreach_mm"
    packet = op.overloadpacket
    overloads = (getattr(packet, overload) for overload in packet.overloads())
    pointwise = any(torch.Tag.pointwise in overload.tags for overload in overloads)
    return not (elementwise or pointwise or name.endswith("_copy"))


def _first_tensor(result: object) -> Tensor | None:
    found = result if isinstance(result, (tuple, list)) else (result,)
    return next((r for r in found if isinstance(r, Tensor)), None)
