"""While a model is recorded, its module calls and autograd functions are met, and torch takes its traceable ways."""

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
"""Called in place of a module, with the call that it stands for and its arguments."""


@contextmanager
def listening(
    meet: Call, refuse: Callable[[str], None], stand_ins: Iterable[tuple[object, str, Callable[..., Any]]]
) -> Iterator[None]:
    """Every module call goes by `meet`, the name of every autograd function by `refuse`; all is put back after.

    Only this thread's calls do; other captures wait.

    `stand_ins` are put in the place of functions: a module, a name in it, and what is called instead.
    """
    apply, flag = torch.autograd.Function.__dict__["apply"], TrueInThisThread()

    def applied(cls: type, *args: Any, **kwargs: Any) -> Any:
        if flag:
            refuse(cls.__name__)
        return apply.__get__(None, cls)(*args, **kwargs)

    functions: tuple[tuple[object, str, Callable[..., Any]], ...] = (
        # It reads the mask for a hint that saves time; the mask itself is applied in any case.
        (nn.modules.transformer, "_detect_is_causal_mask", _is_told_causal),
        *stand_ins,
    )
    with meeting_modules(meet), ExitStack() as stack:
        for place, name, value in (
            (torch.autograd.Function, "apply", classmethod(applied)),
            (torch.compiler, "_is_compiling_flag", flag),
            (torch.compiler, "_is_exporting_flag", flag),
            *((place, name, in_this_thread(value, getattr(place, name))) for place, name, value in functions),
        ):
            stack.enter_context(mock.patch.object(place, name, value))
        yield


@contextmanager
def meeting_modules(meet: Call) -> Iterator[None]:
    """Every module call of this thread goes by `meet`; other captures wait."""
    call = nn.Module.__call__

    def called(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return meet(functools.partial(call, module), module, args, kwargs)

    with TURNS.turn(), mock.patch.object(nn.Module, "__call__", in_this_thread(called, call)):
        yield


def _is_told_causal(mask: Tensor | None, is_causal: bool | None = None, size: int | None = None) -> bool:  # noqa: FBT001 -- torch's signature
    del mask, size
    return is_causal is True
