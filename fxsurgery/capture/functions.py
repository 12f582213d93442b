"""Functions that are kept as leaves: the graph calls them by their importable name, like a torch function."""

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

from fxsurgery.capture.diagnostics import is_user_code

Function = Callable[..., Any]
Call = Callable[[Function, tuple[Any, ...], dict[str, Any]], Any]
"""Called in place of a function, with the function and its arguments."""


def innermost_functions(traceback: TracebackType | None) -> list[Function]:
    """Return the running functions of the user or of a library other than torch, innermost first.

    Only functions that a graph can name are included: those at the top level of a module, under their own name.
    """
    found = list[Function]()
    while traceback is not None:
        frame, traceback = traceback.tb_frame, traceback.tb_next
        module = sys.modules.get(frame.f_globals.get("__name__", ""))
        known = getattr(module, frame.f_code.co_name, None)
        if is_user_code(frame.f_code.co_filename) and _runs(known, frame.f_code):
            found.append(known)  # type: ignore[arg-type]
    return found[::-1]


def _runs(function: object, code: object) -> bool:
    return inspect.isfunction(function) and getattr(inspect.unwrap(function), "__code__", None) is code


def name_of(function: Function) -> str:
    """Return the qualified name of a function."""
    return f"{function.__module__}.{function.__qualname__}"


def patches_for(function: Function, on_call: Call) -> Iterator[tuple[object, str, Function]]:
    """Yield a replacement that calls `on_call` for every module and name under which `function` is known."""

    @functools.wraps(function)
    def replaced(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- any function
        return on_call(function, args, kwargs)

    for module in list(sys.modules.values()):
        names = getattr(module, "__dict__", {})
        yield from ((module, name, replaced) for name, value in list(names.items()) if value is function)
