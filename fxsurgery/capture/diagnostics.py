"""Turns what went wrong while tracing into words: the user's file and line, what happened, what to do."""

import functools
import linecache
import re
import sysconfig
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from fxsurgery.argument_names import usage
from fxsurgery.capture.trace import OffenceError
from fxsurgery.capture.tracer import UntraceableError
from fxsurgery.errors import CaptureError, typed_reason

_KINDS = (
    (
        "used as inputs to control flow|__bool__",
        "a Python branch depends on the value or the shape of a tensor",
        "Write it with torch.where or torch.clamp",
    ),
    (
        "cannot be iterated",
        "Python iterates over a tensor or unpacks it",
        "Use unbind or chunk with a fixed number of results",
    ),
    ("'len' is not supported", "len() is taken of a tensor", "Use x.shape[0]"),
    (
        r"interpreted as an integer|(int|float|complex)\(\) argument|__(index|int|float)__",
        "a tensor value or size is converted to a Python number (int(), float(), range())",
        "Keep it a tensor, or use the size as it is, without int()",
    ),
    (
        "__format__",
        "a tensor value is formatted as text",
        "Take the print or the message out of forward",
    ),
    (
        "__array_|numpy|NumPy",
        "NumPy is called on a tensor",
        "Use the torch function of the same name",
    ),
    (
        "instead found type 'Proxy'|ScriptMethod|ScriptFunction",
        "a scripted function is called",
        "Call the Python function that was scripted",
    ),
    (
        "not installed as a submodule|not a member of this module",
        "a module or parameter is used that is not registered in the model",
        "Keep it as an attribute, in nn.ModuleList or in nn.ParameterList, not in a plain list",
    ),
    (
        r"must be (a )?(Tensor|Number|real number)|invalid combination of arguments|Proxy",
        "a function that is not torch's is called with a tensor",
        "Use torch functions",
    ),
)
_PACKAGE = Path(__file__).parents[1]
_OURS = (str(Path(torch.__file__).parent), str(_PACKAGE))
_OF_MODELS = str(_PACKAGE / "nn")
"""Modules of ours that are part of a model: what they do is the model's doing."""
_WITH_TORCH = ("numpy", "sympy", "mpmath", "networkx")
"""What torch itself runs on."""
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]


def untraceable(error: Exception, model: nn.Module, path: str) -> CaptureError:
    """The error to raise for `error`, met while the module at `path` was traced."""
    what, remedy = _explain(error)
    if name := _autograd_function(error):
        what = f"the torch.autograd.Function {name} is called, whose backward tracing would silently drop"
        remedy = "Write it in differentiable torch operations"
    module = f"`{path}` ({_type_name(model, path)})" if path else f"the model ({_type_name(model, path)})"
    where = user_line(error)
    return CaptureError(
        f"the model cannot be traced: {what}.\n"
        f"  in {module}{where and f', {where}'}\n"
        f"  {typed_reason(error, short=True)}\n"
        f"{remedy}{_keep_whole(model, path) if path or where else ''}."
    )


def offended(error: OffenceError, model: nn.Module) -> CaptureError:
    """The error to raise for what a graph cannot hold, in the module that nothing can be kept whole around."""
    name = type(model).__name__
    where = user_line(error)
    return CaptureError(
        f"the model cannot be taken as a graph: {error}.\n  in the model ({name}){where and f', {where}'}\n"
        f"{error.remedy}, or move that code to a small module of its own, which is then kept whole."
    )


def user_line(error: BaseException) -> str:
    """`file:line: source` of the deepest frame in the user's code; empty where there is none."""
    if isinstance(error, OffenceError) and error.line:
        return error.line
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_users(f.filename)]
    return shown(frames[-1].filename, frames[-1].lineno or 0) if frames else ""


def running_line() -> str:
    """`file:line: source` of the deepest frame in the user's code that is now running."""
    frames = (frame for frame, _ in traceback.walk_stack(None) if is_users(frame.f_code.co_filename))
    frame = next(frames, None)
    return "" if frame is None else shown(frame.f_code.co_filename, frame.f_lineno)


def shown(file: str, line: int) -> str:
    """`file:line: source`."""
    source = linecache.getline(file, line).strip()
    return f"{file}:{line}" + (f": `{source}`" if source else "")


def _explain(error: Exception) -> tuple[str, str]:
    if isinstance(error, UntraceableError):
        return str(error), error.remedy
    for pattern, what, remedy in _KINDS:
        if re.search(pattern, str(error)):
            return what, remedy
    return "its forward raises on a traced tensor", "Rewrite that line in torch operations"


def _keep_whole(model: nn.Module, path: str) -> str:
    if path:
        return f", or keep the module whole with {usage(f'leaf_modules=({_type_name(model, path)},)', 'leaf_modules')}"
    how = usage("leaf_modules=(ThatModule,)", "leaf_modules")
    return f", or move that code to a small module of its own and keep it whole with {how}"


def _type_name(model: nn.Module, path: str) -> str:
    return type(model.get_submodule(path)).__name__


@functools.cache
def is_users(file: str) -> bool:
    """Whether a file is none of Python's, torch's or ours."""
    in_library = in_standard_library(file) or any(f"/site-packages/{name}/" in file for name in _WITH_TORCH)
    is_ours = any(file.startswith(f"{ours}/") for ours in _OURS) and not file.startswith(f"{_OF_MODELS}/")
    return not in_library and not is_ours


@functools.cache
def in_standard_library(file: str) -> bool:
    """Whether a file is Python's own."""
    return (file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file) or file.startswith("<frozen")


def _autograd_function(error: BaseException) -> str:
    """The name of the `autograd.Function` whose forward the error came out of; empty without one."""
    codes = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    found = [f for f in _subclasses(torch.autograd.Function) if getattr(f.forward, "__code__", None) in codes]
    return found[0].__name__ if found else ""


def _subclasses(kind: type[torch.autograd.Function]) -> Iterator[type[torch.autograd.Function]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
