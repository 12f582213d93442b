"""MACs (multiply-accumulates) of one ATen operation, according to its declaration.

One MAC is one multiplication with its addition, half of what `torch.utils.flop_counter` counts. Counted are
convolutions and matrix products: the two of attention, the steps of recurrent layers, products with vectors, bilinear
forms, pairwise distances (one MAC per feature). Not counted by convention are biases, norms, activations and everything
else that is elementwise (including a manual multiply and sum), reductions, pooling and resampling, lookups and data
movement; they are listed in `Cost.uncounted`. All others have unknown MACs: transforms, decompositions and solvers,
sparse and quantized products, operations of other libraries. They are listed in `Cost.unknown_macs`.
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
    """Return the MACs of `op` on (meta) tensors; None if they are not counted or unknown."""
    declared = registry.of_aten(op)
    first = _first_tensor(result)
    if first is None:
        return None
    if declared is not None and declared.macs is not None:
        return declared.macs(args, first)
    return macs_by_torch(op.overloadpacket, args, kwargs, result)


def macs_by_torch(op: Any, args: Args, kwargs: dict[str, Any], result: object) -> float | None:  # noqa: ANN401
    """Return the MACs by PyTorch's own formula for `op`; None without one."""
    from torch.utils.flop_counter import flop_registry  # noqa: PLC0415 -- it imports triton

    registered = flop_registry.get(op)
    return None if registered is None else float(registered(*args, **kwargs, out_val=result)) / 2


def has_unknown_macs(op: OpOverload) -> bool:
    """Return True if `op`, for which no MACs are counted, may have some."""
    if (declared := registry.of_aten(op)) is not None:
        return declared.multiplies and declared.macs is None
    return _may_multiply(op)


@functools.cache
def _may_multiply(op: OpOverload) -> bool:
    """Return True if an undeclared operation may have MACs, being neither view, copy nor elementwise."""
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
