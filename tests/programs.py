"""Programs of the zoo, captured once: tests share them, since a program never changes."""

import functools

from fxsurgery.capture import capture
from fxsurgery.program import Program
from zoo import REAL, ZOO, example


@functools.cache
def program(name: str) -> Program:
    """The captured model of that name, tiny or real."""
    return capture({**ZOO, **REAL}[name](), example(name))
