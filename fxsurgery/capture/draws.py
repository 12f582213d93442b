"""Detection of random numbers that become Python values: a graph would always repeat the outcome of one run.

A random tensor is an operation of the graph and is drawn anew in each call. Any other random number may control Python
code, so every run is watched for draws from the generators of Python, the operating system and NumPy (the global one,
those that the model holds, and those that its code refers to).
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

from fxsurgery.capture.diagnostics import in_standard_library, is_user_code, source_location

REMEDY = "Draw with torch and keep the result a tensor, as in x * (torch.rand(len(x), 1, device=x.device) > p)"

OUT_OF_LEAF = "a Python value returned by a leaf module or function"

OnDraw = Callable[[str, str], None]
"""Called at each draw with its source, such as "os.urandom", and the user's line as `file:line: source`."""

NumPyGenerator = np.random.Generator | np.random.RandomState | np.random.BitGenerator
_NUMPY_NAMES = frozenset(
    name for kind in (np.random.Generator, np.random.RandomState) for name in dir(kind) if name[0] != "_"
)
_MAX_DEPTH = 3
"""How many levels of attributes and entries to search for a generator below a module."""


def draw_message(source: str) -> str:
    """Return the error text for a draw from `source`."""
    return f"random numbers control Python code ({source}), and a graph would always repeat one outcome"


def has_python_values(out: object) -> bool:
    """Return True if the result of a call contains Python values, which a graph would freeze at those of one run."""
    return any(isinstance(leaf, (bool, int, float, str)) for leaf in pytree.tree_leaves(out))


@contextmanager
def python_draws(model: nn.Module, on_draw: OnDraw) -> Iterator[None]:
    """Context manager that calls `on_draw`, which may raise, at every random draw in Python by the user's code."""
    before = sys.getprofile()
    watch = _Watch(model, on_draw)
    sys.setprofile(watch.on_event)
    try:
        yield
    finally:
        _restore(before)


def _restore(profiler: Any) -> None:  # noqa: ANN401 -- a function, or a profiler object of cProfile
    if profiler is None or callable(profiler):
        sys.setprofile(profiler)
    else:
        sys.setprofile(None)
        profiler.enable()


class _Watch:
    """Watches the calls of one run. Calls into NumPy are invisible to a profiler, so generator states are compared."""

    def __init__(self, model: nn.Module, on_draw: OnDraw) -> None:
        self._on_draw = on_draw
        self._known = {id(g): g for module in model.modules() for g in _held_generators(module)}
        self._states = {key: _state(g) for key, g in self._known.items()}
        self._global = _global_state()
        self._codes = set[CodeType]()
        self._import: FrameType | None = None

    def on_event(self, frame: FrameType, event: str, arg: Any) -> None:  # noqa: ANN401
        """Handle an event as the profile function; draws during an import happen only once and do not count."""
        if self._import is not None:
            self._import = None if event == "return" and frame is self._import else self._import
            return
        if event == "call" and frame.f_code.co_filename.startswith("<frozen importlib"):
            self._import = frame
            return
        if event == "c_call" and (source := _source(arg)):
            caller = _caller(frame)
            if caller is not None and is_user_code(caller.f_code.co_filename):
                self._on_draw(source, source_location(caller.f_code.co_filename, caller.f_lineno))
        here = frame.f_back if event == "call" else frame
        if here is not None and is_user_code(here.f_code.co_filename):
            self._compare(here)
        if event == "call" and is_user_code(frame.f_code.co_filename) and frame.f_code not in self._codes:
            self._codes.add(frame.f_code)
            for generator in _referenced_generators(frame):
                self._known[id(generator)] = generator
                self._states[id(generator)] = _state(generator)

    def _compare(self, frame: FrameType) -> None:
        """Report a NumPy draw since the last comparison, made by `frame` at or before its current line."""
        states = {key: _state(g) for key, g in self._known.items()}, _global_state()
        if states != (self._states, self._global):
            self._states, self._global = states
            self._on_draw("NumPy's random", source_location(frame.f_code.co_filename, _numpy_line(frame)))


def _source(function: Any) -> str:  # noqa: ANN401
    """Return what a call of a builtin function draws from; empty if it draws nothing."""
    owner = getattr(function, "__self__", None)
    if isinstance(owner, _random.Random):
        return "Python's random" if function.__name__ in {"random", "getrandbits"} else ""
    return "os.urandom" if function is os.urandom else ""


def _caller(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame outside the standard library."""
    while frame is not None and in_standard_library(frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _held_generators(module: nn.Module) -> Iterator[NumPyGenerator]:
    """Yield the generators that a module or its class holds."""
    for kind in type(module).__mro__:
        if is_user_code(getattr(sys.modules.get(kind.__module__), "__file__", None) or "<frozen"):
            yield from _generators_in(vars(kind), 1)
    yield from _generators_in(vars(module), _MAX_DEPTH)


def _generators_in(value: Any, depth: int) -> Iterator[NumPyGenerator]:  # noqa: ANN401
    """Yield the generators in a value, searched to the given depth."""
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
        yield from _generators_in(part, depth - 1)


def _referenced_generators(frame: FrameType) -> Iterator[NumPyGenerator]:
    """Yield the generators that a frame's code refers to: globals, attributes of modules, and closure variables."""
    names = frame.f_code.co_names
    for value in (frame.f_globals.get(name) for name in names):
        if isinstance(value, ModuleType):
            yield from (found for name in names for found in _generators_in(getattr(value, name, None), 1))
        else:
            yield from _generators_in(value, 1)
    if frame.f_code.co_freevars:
        yield from (found for name in frame.f_code.co_freevars for found in _generators_in(frame.f_locals.get(name), 1))


def _state(generator: NumPyGenerator) -> object:
    if isinstance(generator, np.random.RandomState):
        return _digest(generator.get_state(legacy=False))
    return _digest(generator.state if isinstance(generator, np.random.BitGenerator) else generator.bit_generator.state)


def _global_state() -> object:
    return _digest(np.random.get_state(legacy=False))  # noqa: NPY002 -- the state a model may draw from


def _digest(state: Mapping[str, Any]) -> object:
    """Return enough of a state to detect that it advanced; of a long key, only its ends."""
    parts = list[object]()
    for value in state.values():
        if isinstance(value, Mapping):
            parts.append(_digest(value))
        elif isinstance(value, np.ndarray):
            parts += [value[:4].tolist(), value[-1].item()]
        else:
            parts.append(value)
    return parts


def _numpy_line(frame: FrameType) -> int:
    """Return the nearest line up to the current one that mentions a NumPy draw; the current line if none does."""
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
