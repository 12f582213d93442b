"""One spelling for what a torch call did: the one that symbolic tracing would give it."""

import builtins
import functools
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

DUNDERS = {
    "__getitem__": operator.getitem, "__setitem__": operator.setitem,
    "__add__": operator.add, "__sub__": operator.sub, "__mul__": operator.mul, "__truediv__": operator.truediv,
    "__floordiv__": operator.floordiv, "__mod__": operator.mod, "__pow__": operator.pow,
    "__matmul__": operator.matmul, "__neg__": operator.neg, "__invert__": operator.invert, "__abs__": builtins.abs,
    "__and__": operator.and_, "__or__": operator.or_, "__xor__": operator.xor,
    "__lshift__": operator.lshift, "__rshift__": operator.rshift,
    "__eq__": operator.eq, "__ne__": operator.ne, "__lt__": operator.lt, "__le__": operator.le,
    "__gt__": operator.gt, "__ge__": operator.ge,
    "__iadd__": operator.iadd, "__isub__": operator.isub, "__imul__": operator.imul, "__itruediv__": operator.itruediv,
    "__ifloordiv__": operator.ifloordiv, "__ipow__": operator.ipow, "__iand__": operator.iand, "__ior__": operator.ior,
}  # fmt: skip
REFLECTED = {
    "__radd__": operator.add, "__rsub__": operator.sub, "__rmul__": operator.mul, "__rtruediv__": operator.truediv,
    "__rdiv__": operator.truediv, "__rfloordiv__": operator.floordiv, "__rpow__": operator.pow,
    "__rmatmul__": operator.matmul, "__rmod__": operator.mod, "__rand__": operator.and_, "__ror__": operator.or_,
    "__rxor__": operator.xor,
}  # fmt: skip


def spelled(func: Callable[..., Any], name: str) -> tuple[str, Any] | None:
    """The op and the target of the node for a call of `func`; `None` where generated code cannot name it."""
    if name in DUNDERS or name in REFLECTED:
        return "call_function", (DUNDERS | REFLECTED)[name]
    method: object = getattr(torch.Tensor, name, None)
    if method is func or getattr(func, "__module__", None) == "torch._tensor":
        return "call_method", name
    return ("call_function", func) if _is_importable(func) else None


@functools.cache
def _is_importable(func: Callable[..., Any]) -> bool:
    """Whether generated code can name a function."""
    try:
        root, *path = fx.node._get_qualified_name(func).split(".")  # noqa: SLF001 -- what the code will call it
        found: object = functools.reduce(getattr, path, sys.modules[root])
    except (AttributeError, KeyError, RuntimeError):
        return False
    return found is func
