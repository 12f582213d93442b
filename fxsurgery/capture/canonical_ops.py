"""Canonical node targets of torch calls: those that symbolic tracing would record."""

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxsurgery.ops import registry
from fxsurgery.ops.spelling import python_function


def canonical_target(func: Callable[..., Any], name: str) -> tuple[str, Any] | None:
    """Return the op and target of the node for a call of `func`; None if generated code cannot name it."""
    spelling = registry.spelling_of_method(name)
    if spelling is not None and (function := python_function(spelling)) is not None:
        return "call_function", function
    method: object = getattr(torch.Tensor, name, None)
    if method is func or getattr(func, "__module__", None) == "torch._tensor":
        return "call_method", name
    return ("call_function", func) if _is_importable(func) else None


def is_reflected(name: str) -> bool:
    """Return True if a method takes its two operands in reverse order, as `__radd__` does."""
    spelling = registry.spelling_of_method(name)
    return spelling is not None and spelling.reflected


@functools.cache
def _is_importable(func: Callable[..., Any]) -> bool:
    """Return True if generated code can refer to a function by its qualified name."""
    try:
        root, *path = fx.node._get_qualified_name(func).split(".")  # noqa: SLF001 -- the name in the generated code
        found: object = functools.reduce(getattr, path, sys.modules[root])
    except (AttributeError, KeyError, RuntimeError):
        return False
    return found is func
