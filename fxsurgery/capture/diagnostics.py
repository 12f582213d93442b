"""Turns tracing failures into messages: the user's file and line, what happened, and the remedy."""

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
from fxsurgery.capture.trace import UnsupportedCodeError
from fxsurgery.capture.tracer import UntraceableError
from fxsurgery.errors import CaptureError, typed_reason

_CAUSES = (
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
        "Keep it a tensor, or use the size directly, without int()",
    ),
    (
        "__format__",
        "a tensor value is formatted as text",
        "Remove the print or the message from forward",
    ),
    (
        "__array_|numpy|NumPy",
        "NumPy is called on a tensor",
        "Use the equivalent torch function",
    ),
    (
        "instead found type 'Proxy'|ScriptMethod|ScriptFunction",
        "a scripted function is called",
        "Call the Python function that was scripted",
    ),
    (
        "not installed as a submodule|not a member of this module",
        "a module or parameter is used that is not registered with the model",
        "Store it as an attribute, or in nn.ModuleList or nn.ParameterList instead of a plain list",
    ),
    (
        r"must be (a )?(Tensor|Number|real number)|invalid combination of arguments|Proxy",
        "a function from outside torch is called with a tensor",
        "Use torch functions",
    ),
)
_PACKAGE = Path(__file__).parents[1]
_LIBRARY_ROOTS = (str(Path(torch.__file__).parent), str(_PACKAGE))
_MODEL_CODE = str(_PACKAGE / "nn")
"""Modules of this package that become part of a model; their code counts as the model's."""
_TORCH_DEPENDENCIES = ("numpy", "sympy", "mpmath", "networkx")
"""Packages that torch itself depends on."""
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"]


def untraceable(error: Exception, model: nn.Module, path: str) -> CaptureError:
    """Return the error to raise for `error`, raised while the module at `path` was traced."""
    what, remedy = _explain(error)
    if name := _autograd_function(error):
        what = f"the torch.autograd.Function {name} is called, and tracing would silently drop its backward"
        remedy = "Write it in differentiable torch operations"
    module = f"`{path}` ({_type_name(model, path)})" if path else f"the model ({_type_name(model, path)})"
    where = user_line(error)
    return CaptureError(
        f"the model cannot be traced: {what}.\n"
        f"  in {module}{where and f', {where}'}\n"
        f"  {typed_reason(error, short=True)}\n"
        f"{remedy}{_leaf_remedy(model, path) if path or where else ''}."
    )


def unsupported_code(error: UnsupportedCodeError, model: nn.Module) -> CaptureError:
    """Return the error to raise for code that a graph cannot represent and that no leaf can contain."""
    name = type(model).__name__
    where = user_line(error)
    return CaptureError(
        f"the model cannot be captured as a graph: {error}.\n  in the model ({name}){where and f', {where}'}\n"
        f"{error.remedy}, or move that code to a small submodule, which is then kept as a leaf."
    )


def user_line(error: BaseException) -> str:
    """Return `file:line: source` of the deepest frame in the user's code; empty without one."""
    if isinstance(error, UnsupportedCodeError) and error.line:
        return error.line
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_user_code(f.filename)]
    return source_location(frames[-1].filename, frames[-1].lineno or 0) if frames else ""


def running_line() -> str:
    """Return `file:line: source` of the deepest user frame on the current call stack; empty without one."""
    frames = (frame for frame, _ in traceback.walk_stack(None) if is_user_code(frame.f_code.co_filename))
    frame = next(frames, None)
    return "" if frame is None else source_location(frame.f_code.co_filename, frame.f_lineno)


def source_location(file: str, line: int) -> str:
    """Format a source location as `file:line: source`."""
    source = linecache.getline(file, line).strip()
    return f"{file}:{line}" + (f": `{source}`" if source else "")


def _explain(error: Exception) -> tuple[str, str]:
    if isinstance(error, UntraceableError):
        return str(error), error.remedy
    for pattern, what, remedy in _CAUSES:
        if re.search(pattern, str(error)):
            return what, remedy
    return "its forward raises on a proxy", "Rewrite that line in torch operations"


def _leaf_remedy(model: nn.Module, path: str) -> str:
    if path:
        how = usage(f"leaf_modules=({_type_name(model, path)},)", "leaf_modules")
        return f", or keep the module as a leaf with {how}"
    how = usage("leaf_modules=(ThatModule,)", "leaf_modules")
    return f", or move that code to a small submodule and keep that as a leaf with {how}"


def _type_name(model: nn.Module, path: str) -> str:
    return type(model.get_submodule(path)).__name__


@functools.cache
def is_user_code(file: str) -> bool:
    """Return True if a file belongs neither to Python, nor to torch and its dependencies, nor to this package."""
    in_library = in_standard_library(file) or any(f"/site-packages/{name}/" in file for name in _TORCH_DEPENDENCIES)
    is_ours = any(file.startswith(f"{root}/") for root in _LIBRARY_ROOTS) and not file.startswith(f"{_MODEL_CODE}/")
    return not in_library and not is_ours


@functools.cache
def in_standard_library(file: str) -> bool:
    """Return True if a file belongs to Python's standard library."""
    return (file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file) or file.startswith("<frozen")


def _autograd_function(error: BaseException) -> str:
    """Return the name of the `autograd.Function` whose forward raised the error; empty without one."""
    codes = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    found = [f for f in _subclasses(torch.autograd.Function) if getattr(f.forward, "__code__", None) in codes]
    return found[0].__name__ if found else ""


def _subclasses(kind: type[torch.autograd.Function]) -> Iterator[type[torch.autograd.Function]]:
    for subclass in kind.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
