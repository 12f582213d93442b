"""Patches that apply to one thread only; other threads call the original.

While a model is traced or recorded, methods of `nn.Module` and functions of torch and of the user are patched. Such
patches are visible to the whole process, where another thread may be running a model of its own.
"""

import builtins
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from torch.fx import _symbolic_trace
from typing_extensions import override

from fxsurgery.turns import TURNS


def in_this_thread(new: Callable[..., Any], original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `new` in the current thread and `before` in every other."""
    owner = threading.get_ident()

    @functools.wraps(new)
    def dispatched(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- any function
        return (new if threading.get_ident() == owner else original)(*args, **kwargs)

    return dispatched


class TrueInThisThread:
    """A flag that is true in the thread that creates it and false in every other; it supports the operators of bool."""

    def __init__(self) -> None:
        self._owner = threading.get_ident()

    def __bool__(self) -> bool:
        return threading.get_ident() == self._owner

    def __or__(self, other: bool) -> bool:
        return bool(self) | other

    def __and__(self, other: bool) -> bool:
        return bool(self) & other

    def __xor__(self, other: bool) -> bool:
        return bool(self) ^ other

    @override
    def __eq__(self, other: object) -> bool:
        return bool(self) == other

    @override
    def __hash__(self) -> int:
        return hash(bool(self))

    @override
    def __repr__(self) -> str:
        return repr(bool(self))

    __ror__, __rand__, __rxor__ = __or__, __and__, __xor__


@contextmanager
def tracing_in_this_thread() -> Iterator[None]:
    """Context manager that confines the patches of torch.fx to this thread; other captures wait."""
    with TURNS.turn(), mock.patch.object(_symbolic_trace, "_Patcher", _Patcher):
        yield


class _Patcher(_symbolic_trace._Patcher):  # noqa: SLF001 -- torch.fx makes all its patches through this class
    """Patches functions and methods for torch.fx, in this thread only."""

    @override
    def patch(
        self, frame_dict: dict[str, Any], name: str, new_fn: Callable[..., Any], deduplicate: bool = True
    ) -> None:
        original = frame_dict.get(name, getattr(builtins, name, None))
        super().patch(frame_dict, name, new_fn if original is None else in_this_thread(new_fn, original), deduplicate)

    @override
    def patch_method(self, cls: type, name: str, new_fn: Callable[..., Any], deduplicate: bool = True) -> None:
        super().patch_method(cls, name, in_this_thread(new_fn, getattr(cls, name)), deduplicate)
