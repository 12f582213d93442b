"""Remedies for a MODEL that names no model: the right form for each common mistake."""

import ast
import importlib.util
import inspect
import json
import re
import zipfile
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from fxsurgery.runs.layout import CONFIG, JOURNAL

WEIGHTS = frozenset({".bin", ".ckpt", ".pt", ".pth", ".safetensors"})
_FORMS = "name it as module:factory or file.py:factory"
_SHOWN = 3


def remedy_for(text: str) -> str:
    """Return what a text names, if it is not `module:factory`, and what to write instead.

    Example:
        >>> remedy_for("cnn.onnx")
        'cnn.onnx is an ONNX file, which cannot be changed; name the PyTorch model that it was exported from'
    """
    path = Path(text)
    if (of_suffix := _BY_SUFFIX.get(path.suffix.lower())) is not None:
        return of_suffix(path)
    return _published(text) or _module(text) or f"{text!r} is neither a file nor a directory here; {_FORMS}"


def remedy_for_directory(folder: Path) -> str:
    """Return what to write instead of a directory that holds neither a saved result nor a run."""
    if (folder / "model.py").is_file() and (folder / "weights.safetensors").is_file():
        return f"{folder} holds standalone code; name its function: {folder / 'model.py'}:load"
    if (folder / CONFIG).is_file() and not (folder / JOURNAL).is_file() and _is_pretrained(folder / CONFIG):
        return (
            f"{folder} holds a pretrained model of another library; write a function that loads it, such as "
            f"AutoModel.from_pretrained({str(folder)!r}), and name it as file.py:function"
        )
    if (folder / "__init__.py").is_file():
        return f"{folder} is a Python package; name a class or function in it, such as {_dotted(folder)}:Net"
    if weights := next((p for p in sorted(folder.iterdir()) if p.suffix in WEIGHTS), None):
        return f"{folder} holds no saved result; {_with_weights(weights)}"
    return f"{folder} holds no saved result and no run; name a directory that --out or --run-dir made"


def missing_arguments(function: Callable[..., Any], given: Any, flag: str | None) -> str:  # noqa: ANN401 -- a mapping
    """Return why a function cannot be called with these arguments by name; empty if it can, or if nothing is known.

    Args:
        function: the user's class or function.
        given: the arguments by name.
        flag: the flag that gives arguments; `None` if there is none.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return ""
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = [name for name, p in parameters.items() if p.kind in {p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY}]
    for name in given:
        if name not in named and not takes_any:
            close = get_close_matches(name, named, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"it takes: {', '.join(named) or 'nothing'}"
            return f"takes no argument {name!r}; {hint}"
    needed = [name for name in named if parameters[name].default is inspect.Parameter.empty and name not in given]
    if not needed:
        return ""
    listed = ", ".join(needed)
    if flag is None:
        return f"needs {listed}; name a function without required arguments"
    return f"needs {listed}; pass {' '.join(f'{flag} {name}=VALUE' for name in needed)}"


def _with_weights(path: Path) -> str:
    return (
        f"name the class or function that builds the model, and the weights beside it: module:factory --weights {path}"
    )


def _weights(path: Path) -> str:
    if not path.is_file():
        return f"there is no file {path}; {_with_weights(path)}"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if any("/code/" in name for name in archive.namelist()):
                return f"{path} is a TorchScript archive; name the Python class that it was made from, as module:Class"
    return f"{path} holds weights, not the code of a model; {_with_weights(path)}"


def _python(path: Path) -> str:
    if not path.is_file():
        return f"there is no file {path}; name a file that is there, as file.py:factory"
    names = list(_models(path))
    shown = ", ".join(f"{path}:{name}" for name in names[:_SHOWN]) or f"{path}:NAME"
    return f"{path} is a whole file; name what is in it, such as {shown}"


def _models(path: Path) -> Iterator[str]:
    """Yield the public classes of modules in a file, then the functions that return one; the file is not run."""
    try:
        body = ast.parse(path.read_text(encoding="utf-8")).body
    except (OSError, ValueError, SyntaxError):
        return
    modules = list[str]()
    for node in body:
        if isinstance(node, ast.ClassDef) and any(_is_module(base, modules) for base in node.bases):
            modules.append(node.name)
    makers = [node.name for node in body if isinstance(node, ast.FunctionDef) and _returns_module(node, modules)]
    yield from (name for name in (*modules, *makers) if not name.startswith("_"))


def _is_module(kind: ast.expr, modules: list[str]) -> bool:
    """Return whether an expression names a class of modules: of `torch.nn`, or one defined above."""
    owner, _, name = ast.unparse(kind).rpartition(".")
    return name in modules or name.endswith("Module") or owner in {"nn", "torch.nn"}


def _returns_module(function: ast.FunctionDef, modules: list[str]) -> bool:
    made = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    kinds = [value.func for value in made if isinstance(value, ast.Call)]
    declared = [function.returns] if function.returns is not None else []
    return any(_is_module(kind, modules) for kind in (*kinds, *declared))


def _onnx(path: Path) -> str:
    return f"{path} is an ONNX file, which cannot be changed; name the PyTorch model that it was exported from"


def _config(path: Path) -> str:
    if path.suffix in {".yaml", ".yml"}:
        return f"{path} is not a model, and config files are TOML or JSON; {_FORMS}"
    return f"{path} is a config file, not a model; pass it as --config {path} to optimize, or {_FORMS}"


def _data(path: Path) -> str:
    return f"{path} holds arrays, not a model; pass it as data, such as --example-inputs {path}, and {_FORMS}"


def _notebook(path: Path) -> str:
    return f"{path} is a notebook, which cannot be imported; move the model's class to a .py file, and {_FORMS}"


_BY_SUFFIX: dict[str, Callable[[Path], str]] = {
    **dict.fromkeys(WEIGHTS, _weights),
    ".py": _python, ".ipynb": _notebook, ".onnx": _onnx, ".npz": _data, ".npy": _data,
    ".toml": _config, ".json": _config, ".yaml": _config, ".yml": _config,
}  # fmt: skip


def _published(text: str) -> str:
    """Return the remedy for the name of a published model; empty for any other text."""
    owner, slash, name = text.rpartition("/")
    if owner == "timm" or text.startswith("timm:"):
        model = name if slash else text.partition(":")[2]
        return f"{text} is a model of timm; write timm:create_model --model-args model_name={model}"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not Path(text).parent.exists():
        return (
            f"{text} is the name of a model on a hub, which is not downloaded here; write a function that loads it, "
            f"such as AutoModel.from_pretrained({text!r}), and name it as file.py:function"
        )
    if slash or not text.isidentifier():
        return ""
    if importlib.util.find_spec("torchvision") and hasattr(importlib.import_module("torchvision.models"), text):
        return f"{text} is a model of torchvision; write torchvision.models:{text}"
    if importlib.util.find_spec("timm") and importlib.import_module("timm").is_model(text):
        return f"{text} is a model of timm; write timm:create_model --model-args model_name={text}"
    return ""


def _module(text: str) -> str:
    """Return the remedy for the name of a module, or of a dotted attribute; empty for any other text."""
    module, dot, attribute = text.rpartition(".")
    if not all(part.isidentifier() for part in text.split(".")):
        return ""
    if _is_importable(text):
        return f"{text} is a whole module; name what is in it, as {text}:NAME"
    return f"a colon stands before the name of the model; write {module}:{attribute}" if dot else ""


def _is_importable(name: str) -> bool:
    if Path(*name.split(".")).with_suffix(".py").is_file():  # the current directory is importable
        return True
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError, AttributeError):
        return False


def _is_pretrained(path: Path) -> bool:
    """Return True for a `config.json` of Hugging Face."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and bool({"model_type", "architectures", "architecture"} & found.keys())


def _dotted(folder: Path) -> str:
    return ".".join(part for part in folder.parts if part not in {".", "/"})
