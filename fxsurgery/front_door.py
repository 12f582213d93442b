"""Functions that take the arguments of `fxsurgery.request` by name: their signature, docstring and checks."""

import functools
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ParamSpec, TypeVar, get_type_hints

from torch import nn

from fxsurgery.calls import bound
from fxsurgery.field_docs import docs_of, one_line
from fxsurgery.request import CALLED, Arguments, OptimizeRequest

P = ParamSpec("P")
R = TypeVar("R")

ARGUMENTS = "request: the arguments that `fxsurgery.request.Arguments` declares, and single settings by name."
"""Placeholder in a docstring that `front_door` replaces by the arguments and their texts."""


def front_door(signature: Callable[P, object]) -> Callable[[Callable[[OptimizeRequest], R]], Callable[P, R]]:
    """Let a function of an `OptimizeRequest` be called with the arguments themselves, with their signature and texts.

    Args:
        signature: class whose signature type checkers use.
    """
    del signature
    types, keywords = get_type_hints(Arguments), inspect.Parameter.KEYWORD_ONLY
    parameters = [
        inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=nn.Module),
        *(
            inspect.Parameter(f.name, keywords, default=f.default, annotation=types[f.name])
            for f in fields(Arguments)
            if f.name != "model"
        ),
        inspect.Parameter("settings", inspect.Parameter.VAR_KEYWORD, annotation=Any),
    ]
    known = inspect.Signature(parameters)

    def decorate(function: Callable[[OptimizeRequest], R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            given = bound(known, function.__name__, args, kwargs).arguments
            token = CALLED.set(function.__name__)
            try:
                request = OptimizeRequest(**given)
            finally:
                CALLED.reset(token)
            return function(request)

        call.__signature__ = known  # type: ignore[attr-defined]  # where inspect looks first
        call.__doc__ = _documented(function)
        return call

    return decorate


def _documented(function: Callable[..., object]) -> str:
    """Return the docstring with the text of each argument in place of `ARGUMENTS`."""
    texts = docs_of(OptimizeRequest)
    rows = (f"{name}: {one_line(texts[name])}" for name in ("model", *(name for name in texts if name != "model")))
    indent, rest = " " * 4, " " * 8
    wrapped = [textwrap.fill(row, 116, initial_indent=indent, subsequent_indent=rest) for row in rows]
    return (inspect.getdoc(function) or "").replace(f"{indent}{ARGUMENTS}", "\n".join(wrapped))
