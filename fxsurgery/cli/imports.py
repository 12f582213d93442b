"""Import the objects that a command line names: `package.module:attribute` or `path/to/file.py:attribute`.

The current directory is importable, as it is for `python -m`.
"""

import difflib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import fxsurgery
from fxsurgery.cli.model_names import missing_arguments
from fxsurgery.errors import ConfigError, SourceError, SurgeryError

_OWN = Path(fxsurgery.__file__).parent
_LIBRARIES = tuple({sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")})


def named(text: str, what: str) -> Any:  # noqa: ANN401 -- whatever the user made
    """Import the object that `text` names.

    Args:
        text: `module:attribute` or `file.py:attribute`; the attribute may be dotted.
        what: the flag that names it, for messages: `--train-data`.

    Raises:
        ConfigError: the text does not have this form.
        SourceError: there is no such module or attribute, or importing it fails.
    """
    if not is_named(text):
        raise ConfigError(f"{what}: {text!r} is neither a file here nor of the form module:name{_advice(text)}")
    module_name, _, attribute = text.rpartition(":")
    found: Any = _module(module_name, what)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise SourceError(f"{what}: {module_name} has no {attribute!r}{_others(found, part)}")
        found = getattr(found, part)
    return found


def is_named(text: str) -> bool:
    """Return whether a text has the form `module:attribute`.

    Example:
        >>> is_named("nets.py:Net"), is_named("nets.py")
        (True, False)
    """
    module_name, colon, attribute = text.rpartition(":")
    return bool(colon and module_name and attribute)


def called(function: Callable[..., Any], text: str, what: str, arguments: Mapping[str, Any] | None = None) -> Any:  # noqa: ANN401
    """Return the result of the user's function.

    Raises:
        SourceError: it needs other arguments, or fails; the message names the user's line.
    """
    if why := missing_arguments(function, arguments or {}, "--model-args" if what == "MODEL" else None):
        raise SourceError(f"{what}: {text} {why}")
    with _blamed(f"{what}: {text}({', '.join(arguments or {})}) failed"):
        return function(**(arguments or {}))


def _module(name: str, what: str) -> ModuleType:
    here = os.getcwd()  # noqa: PTH109 -- sys.path holds texts
    if here not in sys.path:
        sys.path.insert(0, here)
    if name.endswith(".py"):
        return _from_file(Path(name), what)
    try:
        with _blamed(f"{what}: cannot import {name}"):
            return importlib.import_module(name)
    except SourceError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and f"{name}.".startswith(f"{missing.name}."):
            raise SourceError(
                f"{what}: there is no module {missing.name!r}, neither here nor installed; install it, or run where "
                "it can be imported"
            ) from missing
        raise


def _from_file(path: Path, what: str) -> ModuleType:
    if not path.is_file():
        raise SourceError(f"{what}: there is no file {path}; name a file that is there")
    whole = path.resolve()
    known = next((m for m in [*sys.modules.values()] if getattr(m, "__file__", None) == str(whole)), None)
    if known is not None:
        return known
    name = path.stem if path.stem not in sys.modules else str(whole)
    spec = importlib.util.spec_from_file_location(name, whole)
    if spec is None or spec.loader is None:
        raise SourceError(f"{what}: {path} is not a Python file; name one that ends in .py")
    if str(whole.parent) not in sys.path:
        sys.path.insert(0, str(whole.parent))  # its imports are next to it
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _blamed(f"{what}: cannot import {path}"):
            spec.loader.exec_module(module)
    except SourceError:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _blamed(doing: str) -> Iterator[None]:
    """Turn an exception of the user's code into a `SourceError` that names its line."""
    try:
        yield
    except SurgeryError:
        raise
    except (Exception, SystemExit) as error:
        said = " ".join(str(error).split()) or "no message"
        raise SourceError(
            f"{doing}: {type(error).__name__}: {said}{_place(error)}; correct that code, or name something else"
        ) from error


def _place(error: BaseException) -> str:
    """Return the innermost line of the user's own code in the traceback."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({_relative(error.filename)}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if _is_users(f.filename)]
    return f" ({_relative(own[-1].filename)}, line {own[-1].lineno}: {own[-1].line})" if own else ""


def _is_users(filename: str) -> bool:
    library = filename.startswith("<") or filename.startswith(_LIBRARIES)
    return not library and _OWN not in Path(filename).parents


def _relative(filename: str) -> str:
    path = Path(filename)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else filename


def _advice(text: str) -> str:
    """Return how to name data, a loss, a metric or a class."""
    path = Path(text)
    if path.suffix == ".py" and path.is_file():
        return f"; name what is in it: {text}:NAME"
    if "." in text and not path.suffix.strip(".").isdigit() and not path.parent.name:
        module_name, _, attribute = text.rpartition(".")
        return f"; write {module_name}:{attribute}"
    return "; name what you mean as module:name or file.py:name"


def _others(found: object, name: str) -> str:
    public = {n.lower(): n for n in dir(found) if not n.startswith("_")}
    close = difflib.get_close_matches(name.lower(), public, n=1)
    return f"; did you mean {public[close[0]]!r}?" if close else "; name an object of the module"
