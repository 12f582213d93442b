"""Functions that are kept whole: what a graph calls by its importable name, as it calls a torch function."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from fxsurgery.capture.diagnostics import is_users

Function = Callable[..., Any]
Call = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]
"""Called in place of a function, with it and its arguments."""


def innermost(traceback: TracebackType | None) -> list[Function]:
    """The functions of the user's (or a library's, not torch's) that were running, the innermost first.

    Only those that a graph can name: at the top of a module, under their own name.
    """
    found = list[Function]()
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        module = sys.modules.get(frame.f_globals.get("__name__", ""))
        known = getattr(module, frame.f_code.co_name, None)
        if is_users(frame.f_code.co_filename) and _runs(known, frame.f_code):
            found.append(known)  # type: ignore[arg-type]
    return found[::-1]


def _runs(function: object, code: object) -> bool:
    return inspect.isfunction(function) and getattr(inspect.unwrap(function), "__code__", None) is code


def name_of(function: Function) -> str:
    """Its importable name."""
    return f"{function.__module__}.{function.__qualname__}"


def stand_ins(function: Function, meet: Call) -> Iterator[tuple[object, str, Function]]:
    """Every module and name under which `function` is known, with what goes by `meet` instead."""

    @functools.wraps(function)
    def met(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- any function
        return meet(function, args, kwargs)

    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        yield from ((module, name, met) for name, value in list(names.items()) if value is function)
