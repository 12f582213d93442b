"""Signature of the generated forward: the user's argument names, and how each placeholder is read from them."""

import keyword
import re
import unicodedata
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.fx.graph import _PyTreeCodeGen
from torch.utils import _pytree as pytree

from fxsurgery.program import Program
from fxsurgery.saving.standalone.literals import Code, to_code

RESERVED = {"self", "named", "_", "torch", "nn", "F", "operator", "math", "abs", "bool", "float", "getattr", "int",
            "len", "max", "min", "pow", "round", "slice", "sum", "tuple", "list", "divmod", "complex"}  # fmt: skip
"""Names with another meaning in the generated code."""


@dataclass(frozen=True)
class ForwardArgument:
    """One argument of forward."""

    name: str
    """Name in the body of forward."""
    value: Any
    """The example input."""
    by_keyword: bool
    user_name: str
    """The user's name, used in calls by keyword."""

    @property
    def is_renamed(self) -> bool:
        """Return True if it is passed by a keyword that the body cannot use as a variable."""
        return self.by_keyword and self.name != self.user_name


def arguments_of(program: Program) -> list[ForwardArgument]:
    """Return the arguments of forward under the user's names."""
    codegen = program.graph_module.graph._codegen  # noqa: SLF001 -- how the inputs are taken apart
    inputs = program.examples
    if isinstance(codegen, _PyTreeCodeGen):
        names = codegen.pytree_info.orig_args
    else:
        names = [str(n.target) for n in program.nodes if n.op == "placeholder"]
    values = [*((v, False) for v in inputs.args), *((v, True) for v in inputs.kwargs.values())]
    local = free_names(names, RESERVED)
    return [ForwardArgument(local[n], value, named, n) for n, (value, named) in zip(names, values, strict=True)]


def free_names(names: Iterable[str], taken: AbstractSet[str]) -> dict[str, str]:
    """Map each name to a unique variable name, as similar as possible and not in `taken`."""
    found = {name: name for name in names if _is_usable(name) and name not in taken}
    for name in (n for n in names if n not in found):
        short = re.sub(r"\W", "_", unicodedata.normalize("NFKC", name)).strip("_") or "x"
        free = short if short.isidentifier() else f"x_{short}"
        while not _is_usable(free) or free in taken or free in found.values():
            free += "_"
        found[name] = free
    return found


def _is_usable(name: str) -> bool:
    """Return True if code can use the name unchanged: Python mangles leading underscores and normalizes letters."""
    plain = name.isidentifier() and not keyword.iskeyword(name)
    return plain and not name.startswith("__") and unicodedata.normalize("NFKC", name) == name


def placeholders(program: Program, arguments: list[ForwardArgument]) -> dict[fx.Node, str]:
    """Return the code that reads each placeholder: an argument, or a part of one."""
    nodes = [n for n in program.nodes if n.op == "placeholder"]
    places = [place for a in arguments for place in _places(a.name, a.value)]
    return dict(zip(nodes, places, strict=True))


def _places(code: str, value: Any) -> Iterator[str]:  # noqa: ANN401 -- any structure
    """Yield the code of every leaf in the order of the flattened structure."""
    for path, _ in pytree.tree_flatten_with_path(value)[0]:
        yield code + "".join(_step(key) for key in path)


def _step(key: Any) -> str:  # noqa: ANN401 -- a key of pytree
    if isinstance(key, pytree.SequenceKey):
        return f"[{key.idx}]"
    if isinstance(key, pytree.MappingKey):
        return f"[{to_code(key.key).text}]"
    return f".{key.name}"


def header(arguments: list[ForwardArgument], *, returns_tensor: bool) -> str:
    """Return the `def` line of forward."""
    plain = (a for a in arguments if not a.is_renamed)
    parts = [f"{a.name}: Tensor" if isinstance(a.value, Tensor) else a.name for a in plain]
    listed = ", ".join([*parts, *(["**named: Any"] if any(a.is_renamed for a in arguments) else [])])
    return f"def forward(self, {listed}){' -> Tensor' if returns_tensor else ''}:"


def renamings(arguments: list[ForwardArgument]) -> list[str]:
    """Return the first statements of forward, which rename keyword arguments with reserved names."""
    return [f"{a.name} = named[{to_code(a.user_name).text}]" for a in arguments if a.is_renamed]


def example_code(value: Any) -> Code:  # noqa: ANN401 -- any structure
    """Return code that creates random inputs like `value`."""
    return to_code(value, _random)


def _random(value: object) -> Code | None:
    if not isinstance(value, Tensor):
        return None
    shape, dtype = ", ".join(map(str, value.shape)), f"dtype={value.dtype}"
    comma = ", " if shape else ""
    size = f"({shape}{',' if value.dim() == 1 else ''})"
    if value.is_floating_point():
        more = "" if str(value.dtype) == "torch.float32" else f", {dtype}"
        return Code(f"torch.randn({shape or '()'}{more})")
    if str(value.dtype) == "torch.bool" or not value.numel() or value.is_complex():
        return Code(f"torch.ones({shape}{comma}{dtype})" if shape else f"torch.ones((), {dtype})")
    low, high = int(value.min()), int(value.max()) + 1
    more = "" if str(value.dtype) == "torch.int64" else f", {dtype}"
    return Code(f"torch.randint({low}, {high}, {size}{more})")
