"""Nodes whose ATen operation and result shape follow from the declaration of their operator."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxsurgery.ops import registry
from fxsurgery.ops.fast.meta_call import Meta, MetaCall
from fxsurgery.ops.operator import Kind


def plain_module(module: nn.Module, args: Sequence[Any], meta: Meta) -> MetaCall | Tensor | None:
    """Return the operation that `module` runs on `args`; its input if it does nothing, `None` if it must be run."""
    if len(args) != 1 or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
        return None
    declared = registry.of_module(module)
    if declared is None or declared.fast_module is None or not declared.is_exactly(module):
        return None
    if module.training or module._forward_hooks or module._forward_pre_hooks:  # noqa: SLF001
        return None
    return declared.fast_module(module, args[0], meta)


def plain_function(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> MetaCall | Tensor | None:  # noqa: ANN401
    """Return the operation of a function, or of a method of `args[0]` by name; `None` if it must be run."""
    if not args or not isinstance(args[0], Tensor) or not args[0].is_meta:
        return None
    spelling = registry.spelling_of_target(target)
    if spelling is None or spelling.reflected or (work_out := spelling.operator.fast_call) is None:
        return None
    if not spelling.in_place:
        return work_out(*args, **kwargs)
    found = None if spelling.operator.kind is Kind.MOVEMENT else work_out(*args, **kwargs)
    return replace(found, result=args[0]) if isinstance(found, MetaCall) else found


def computes_no_tensor(target: Any, args: Sequence[Any]) -> bool:  # noqa: ANN401
    """Return True if a function, or a method of `args[0]`, works only on numbers and containers."""
    spelling = registry.spelling_of_target(target, args)
    if spelling is not None and spelling.operator.kind is Kind.QUERY:
        return True
    if spelling is not None and spelling.operator.name == "getitem" and isinstance(args[0], (tuple, list, dict)):
        return not isinstance(args[1], Tensor)
    plain = getattr(target, "__module__", None) in {"_operator", "math"}
    return plain and not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(args))
