"""Random numbers that become Python values: a graph would repeat the outcome of one run.

A draw that stays a tensor is an operation, and is drawn anew in each call of the graph. Any other controls Python
code, and is met here in every run, whatever its outcome: draws from the generators of Python, of the system, and of
NumPy (the global one, those that the model holds, and those that its code names).
"""

import _random
import dis
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType, ModuleType
from typing import Any

import numpy as np
from torch import nn
from torch.utils import _pytree as pytree

from fxsurgery.capture.diagnostics import in_standard_library, is_users, shown

REMEDY = "Draw with torch and keep what is drawn a tensor, as in x * (torch.rand(len(x), 1, device=x.device) > p)"

OUT_OF_WHOLE = "a value that comes out of what is kept whole"

Meet = Callable[[str, str], None]
"""Called at each draw with what was drawn from, and the user's line."""

NumPyGenerator = np.random.Generator | np.random.RandomState | np.random.BitGenerator
_NUMPY_NAMES = frozenset(
    name for kind in (np.random.Generator, np.random.RandomState) for name in dir(kind) if name[0] != "_"
)
_DEEPEST = 3
"""Attributes and entries that are gone through from a module to a generator."""


def steers(source: str) -> str:
    """What is wrong with a draw from `source`."""
    return f"random numbers control Python code ({source}), and a graph would repeat one outcome"


def has_numbers(out: object) -> bool:
    """Whether a call gives values that are Python's: a graph would hold those of one run."""
    return any(isinstance(leaf, (bool, int, float, str)) for leaf in pytree.tree_leaves(out))


@contextmanager
def python_draws(model: nn.Module, meet: Meet) -> Iterator[None]:
    """While the block runs, every draw that the user's code makes in Python goes by `meet`, which may raise."""
    before = sys.getprofile()
    watch = _Watch(model, meet)
    sys.setprofile(watch.see)
    try:
        yield
    finally:
        _restore(before)


def _restore(profiler: Any) -> None:  # noqa: ANN401 -- a function, or an object of cProfile
    if profiler is None or callable(profiler):
        sys.setprofile(profiler)
    else:
        sys.setprofile(None)
        profiler.enable()


class _Watch:
    """Sees the calls of one run. NumPy's calls do not show, so the states of its generators are compared."""

    def __init__(self, model: nn.Module, meet: Meet) -> None:
        self._meet = meet
        self._known = {id(g): g for module in model.modules() for g in _held(module)}
        self._states = {key: _state(g) for key, g in self._known.items()}
        self._global = _global_state()
        self._codes = set[CodeType]()
        self._import: FrameType | None = None

    def see(self, frame: FrameType, event: str, arg: Any) -> None:  # noqa: ANN401
        """The profile function. What an import does is done once, and no part of the run."""
        if self._import is not None:
            self._import = None if event == "return" and frame is self._import else self._import
            return
        if event == "call" and frame.f_code.co_filename.startswith("<frozen importlib"):
            self._import = frame
            return
        if event == "c_call" and (source := _source(arg)):
            caller = _caller(frame)
            if caller is not None and is_users(caller.f_code.co_filename):
                self._meet(source, shown(caller.f_code.co_filename, caller.f_lineno))
        here = frame.f_back if event == "call" else frame
        if here is not None and is_users(here.f_code.co_filename):
            self._compare(here)
        if event == "call" and is_users(frame.f_code.co_filename) and frame.f_code not in self._codes:
            self._codes.add(frame.f_code)
            for generator in _named(frame):
                self._known[id(generator)] = generator
                self._states[id(generator)] = _state(generator)

    def _compare(self, frame: FrameType) -> None:
        """Meet a draw from NumPy since the last comparison: it was in `frame`, at or before its line."""
        now = {key: _state(g) for key, g in self._known.items()}, _global_state()
        if now != (self._states, self._global):
            self._states, self._global = now
            self._meet("NumPy's random", shown(frame.f_code.co_filename, _numpy_line(frame)))


def _source(function: Any) -> str:  # noqa: ANN401
    """What a call of a builtin function draws from; empty where it draws nothing."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, _random.Random):
        return "Python's random" if function.__name__ in {"random", "getrandbits"} else ""
    return "os.urandom" if function is os.urandom else ""


def _caller(frame: FrameType | None) -> FrameType | None:
    """The innermost frame that is not the standard library's."""
    while frame is not None and in_standard_library(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _held(module: nn.Module) -> Iterator[NumPyGenerator]:
    """The generators that a module, or its class, holds."""
    for kind in type(module).__mro__:
        if is_users(getattr(sys.modules.get(kind.__module__), "__file__", None) or "<frozen"):
            yield from _within(vars(kind), 1)
    yield from _within(vars(module), _DEEPEST)


def _within(value: Any, depth: int) -> Iterator[NumPyGenerator]:  # noqa: ANN401
    """The generators in a value, gone through so deep."""
    if isinstance(value, NumPyGenerator):
        yield value
        return
    if depth == 0 or isinstance(value, (nn.Module, ModuleType, type)):
        return
    parts: Iterable[Any] = ()
    if isinstance(value, Mapping):
        parts = value.values()
    elif isinstance(value, (list, tuple, set)):
        parts = value
    elif type(value).__module__ not in {"builtins", "torch", "torch.nn.parameter", "numpy"}:
        parts = getattr(value, "__dict__", {}).values()
    for part in list(parts):
        yield from _within(part, depth - 1)


def _named(frame: FrameType) -> Iterator[NumPyGenerator]:
    """The generators that the code of a frame names, in its own module, in one that it names, or around it."""
    names = frame.f_code.co_names
    for value in (frame.f_globals.get(name) for name in names):
        if isinstance(value, ModuleType):
            yield from (found for name in names for found in _within(getattr(value, name, None), 1))
        else:
            yield from _within(value, 1)
    if frame.f_code.co_freevars:
        yield from (found for name in frame.f_code.co_freevars for found in _within(frame.f_locals.get(name), 1))


def _state(generator: NumPyGenerator) -> object:
    if isinstance(generator, np.random.RandomState):
        return _short(generator.get_state(legacy=False))
    return _short(generator.state if isinstance(generator, np.random.BitGenerator) else generator.bit_generator.state)


def _global_state() -> object:
    return _short(np.random.get_state(legacy=False))  # noqa: NPY002 -- the state a model may draw from


def _short(state: Mapping[str, Any]) -> object:
    """Enough of a state to tell that it moved on: of a long key, its ends."""
    parts = list[object]()
    for value in state.values():
        if isinstance(value, Mapping):
            parts.append(_short(value))
        elif isinstance(value, np.ndarray):
            parts += [value[:4].tolist(), value[-1].item()]
        else:
            parts.append(value)
    return parts


def _numpy_line(frame: FrameType) -> int:
    """The nearest line up to the current one that names what draws in NumPy; the current one without any."""
    lines = [line for line in _drawing_lines(frame.f_code) if line <= frame.f_lineno]
    return max(lines, default=frame.f_lineno)


@functools.cache
def _drawing_lines(code: CodeType) -> tuple[int, ...]:
    found, line = list[int](), code.co_firstlineno
    for instruction in dis.get_instructions(code):
        line = instruction.starts_line or line
        if instruction.opname.startswith("LOAD_") and instruction.argval in _NUMPY_NAMES:
            found.append(line)
    return tuple(found)
