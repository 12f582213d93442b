"""Derivation of all spellings of an operator from its names."""

import builtins
import operator as python
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.errors import OperatorError
from fxsurgery.ops.operator import Function, Operator, Spelling
from fxsurgery.ops.rules.call import plain_name

NAMESPACES = (torch, F, torch.special, torch._C._VariableFunctions, torch._C._nn)  # noqa: SLF001 -- what F is made of
"""Namespaces in which functions of the same name are the same operator."""

_PYTHON = {"and": "and_", "or": "or_", "div": "truediv"}
"""Names in Python's `operator` module that differ from the special method."""


def spellings_of(operator: Operator) -> Iterator[Spelling]:
    """Yield every spelling of `operator` once.

    Raises:
        OperatorError: an alias does not exist in PyTorch, or there is no spelling at all.
    """
    found = dict[tuple[str, object], Spelling]()
    for spelling in (*_explicit_spellings(operator), *_named_spellings(operator), *_special_methods(operator)):
        found.setdefault((spelling.form, spelling.key), spelling)
    if not found:
        raise OperatorError(
            f"the operator {operator.name!r} has no spelling: PyTorch has nothing with this name; pass modules, "
            "functions or methods"
        )
    yield from found.values()


def _explicit_spellings(operator: Operator) -> Iterator[Spelling]:
    writes = operator.writes
    yield from (Spelling(operator, "module", kind) for kind in operator.modules)
    yield from (Spelling(operator, "function", f, writes) for f in operator.functions)
    yield from (Spelling(operator, "function", f, reflected=True) for f in operator.reflected)
    yield from (Spelling(operator, "method", name, writes or _is_in_place(name)) for name in operator.methods)
    yield from (Spelling(operator, "attribute", name) for name in operator.attributes)
    yield from (Spelling(operator, "aten", name) for name in operator.aten)


def _named_spellings(operator: Operator) -> Iterator[Spelling]:
    for name in (operator.name,) * operator.is_named + operator.aliases:
        known = [*_pytorch_spellings(operator, name), *_pytorch_spellings(operator, f"{name}_")]
        if not known and name in operator.aliases:
            raise OperatorError(
                f"the operator {operator.name!r} has the alias {name!r}, which does not exist in PyTorch; give "
                "spellings with other names as functions or methods"
            )
        yield from known


def _pytorch_spellings(operator: Operator, name: str) -> Iterator[Spelling]:
    """Yield the functions, method and ATen operation that PyTorch has under a name."""
    in_place = operator.writes or _is_in_place(name)
    for space in NAMESPACES:
        if callable(function := getattr(space, name, None)) and not isinstance(function, type):
            yield Spelling(operator, "function", function, in_place)
    if callable(getattr(Tensor, name, None)):
        yield Spelling(operator, "method", name, in_place)
    if hasattr(torch.ops.aten, name):
        yield Spelling(operator, "aten", plain_name(name))


def _is_in_place(name: str) -> bool:
    return name.endswith("_") and not name.endswith("__")


def _special_methods(operator: Operator) -> Iterator[Spelling]:
    if not operator.dunder:
        return
    names = [operator.dunder] + ["div"] * (operator.dunder == "truediv")
    for name in names:
        for mark, in_place, reflected in (("", False, False), ("i", True, False), ("r", False, True)):
            if callable(getattr(Tensor, f"__{mark}{name}__", None)) and (not mark or _has_two_operands(name)):
                yield Spelling(operator, "method", f"__{mark}{name}__", in_place or operator.writes, reflected)
    plain = _PYTHON.get(operator.dunder, operator.dunder)
    yield Spelling(operator, "function", getattr(python, plain), operator.writes)
    if _has_two_operands(operator.dunder) and (function := getattr(python, f"i{operator.dunder}", None)) is not None:
        yield Spelling(operator, "function", function, in_place=True)
    if operator.dunder in {"abs", "pow"}:
        yield Spelling(operator, "function", getattr(builtins, operator.dunder))


def _has_two_operands(name: str) -> bool:
    return callable(getattr(Tensor, f"__r{name}__", None))


def python_function(spelling: Spelling) -> Function | None:
    """Return the function of `operator` or `builtins` for a special method; None for any other spelling.

    Example:
        >>> from fxsurgery.ops import registry
        >>> python_function(registry.spelling_of_method("__radd__"))
        <built-in function add>
    """
    dunder = spelling.operator.dunder
    if spelling.form != "method" or not dunder or not spelling.key.startswith("__"):
        return None
    if dunder == "abs":
        return builtins.abs
    in_place = spelling.in_place and not spelling.operator.writes
    found: Function = getattr(python, f"i{dunder}" if in_place else _PYTHON.get(dunder, dunder))
    return found
