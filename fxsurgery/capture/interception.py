"""Interception of module calls and autograd functions while a model is recorded."""

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from fxsurgery.capture.in_thread import TrueInThisThread, in_this_thread
from fxsurgery.turns import TURNS

Call = Callable[[Callable[..., Any], nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""Called in place of a module, with the original call, the module, and its positional and keyword arguments."""


@contextmanager
def intercepting(
    on_call: Call, refuse: Callable[[str], None], replacements: Iterable[tuple[object, str, Callable[..., Any]]]
) -> Iterator[None]:
    """Context manager that intercepts calls of this thread and makes torch take its traceable code paths.

    Args:
        on_call: called in place of every module.
        refuse: called with the name of every autograd function before it runs; it may raise.
        replacements: functions to patch, each as an owner, an attribute name and the replacement.
    """
    apply, flag = torch.autograd.Function.__dict__["apply"], TrueInThisThread()

    def applied(cls: type, *args: Any, **kwargs: Any) -> Any:
        if flag:
            refuse(cls.__name__)
        return apply.__get__(None, cls)(*args, **kwargs)

    functions: tuple[tuple[object, str, Callable[..., Any]], ...] = (
        # It reads the mask's values only to find a faster path; the mask itself is applied in any case.
        (nn.modules.transformer, "_detect_is_causal_mask", _is_declared_causal),
        *replacements,
    )
    with intercepting_modules(on_call), ExitStack() as stack:
        for owner, name, value in (
            (torch.autograd.Function, "apply", classmethod(applied)),
            (torch.compiler, "_is_compiling_flag", flag),
            (torch.compiler, "_is_exporting_flag", flag),
            *((owner, name, in_this_thread(value, getattr(owner, name))) for owner, name, value in functions),
        ):
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


@contextmanager
def intercepting_modules(on_call: Call) -> Iterator[None]:
    """Context manager that calls `on_call` in place of every module in this thread; other captures wait."""
    call = nn.Module.__call__

    def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return on_call(functools.partial(call, module), module, args, kwargs)

    with TURNS.turn(), mock.patch.object(nn.Module, "__call__", in_this_thread(called, call)):
        yield


def _is_declared_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:  # noqa: FBT001 -- torch's signature
    del mask, size
    return is_causal is True
