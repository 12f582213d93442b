"""Code of a node's call as a person would write it: operators, methods, `F.relu(x)`."""

import builtins
import inspect
import operator
from collections.abc import Mapping
from typing import Any

from torch import fx
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.ops import registry
from fxsurgery.ops.facets import Infix
from fxsurgery.saving.function_refs import name_of
from fxsurgery.saving.standalone.literals import ATOM, POWER, UNARY, Code, Show, index, to_code
from fxsurgery.saving.standalone.literals import name as name_as_code

_IDENTITY: Mapping[object, str] = {operator.is_: "is", operator.is_not: "is not"}
_COMPARISON = 7


def call(node: fx.Node, special: Show, *, tensors: bool) -> Code:
    """Return the code of a function or method call.

    Args:
        node: the node.
        special: returns the code of the nodes that it reads.
        tensors: whether its first argument is a tensor.
    """
    if node.op == "call_method":
        return _method(node, special)
    function: Any = node.target
    name = name_of(function)
    home, _, short = name.rpartition(".")
    if home == "operator":
        return _operator(short, node, special, tensors=tensors)
    if function is builtins.getattr:
        return Code(f"{to_code(node.args[0], special).within(ATOM)}.{name_as_code(node.args[1])}")
    called = name.replace("torch.nn.functional.", "F.")
    return Code(f"{called}({arguments(node.args, _without_defaults(function, node), special)})")


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], special: Show) -> str:
    """Return the code of the arguments of a call, without parentheses."""
    positional = [to_code(a, special).text for a in args]
    return ", ".join([*positional, *(f"{name_as_code(k)}={to_code(v, special).text}" for k, v in kwargs.items())])


def _without_defaults(function: Any, node: fx.Node) -> dict[str, Any]:  # noqa: ANN401 -- any function
    """Return the keyword arguments that differ from their defaults."""
    if getattr(function, "__module__", "") != F.__name__ or not inspect.isfunction(function):
        return dict(node.kwargs)
    known = inspect.signature(function).parameters

    def is_default(name: str, value: object) -> bool:
        default = known[name].default if name in known else inspect.Parameter.empty
        return type(value) is type(default) and bool(value == default)

    return {k: v for k, v in node.kwargs.items() if isinstance(v, fx.Node) or not is_default(k, v)}


def _method(node: fx.Node, special: Show) -> Code:
    name, args = str(node.target), node.args
    if (infix := _infix(node)) is not None:
        return _binary(infix, args, special)
    spelling = registry.spelling_of_method(name)
    if (
        spelling is not None
        and spelling.operator.prefix
        and not spelling.in_place
        and len(args) == 1
        and not node.kwargs
    ):
        return Code(f"{spelling.operator.prefix}{to_code(args[0], special).within(UNARY)}", UNARY)
    receiver = to_code(args[0], special).within(ATOM)
    return Code(f"{receiver}.{name_as_code(name)}({arguments(args[1:], node.kwargs, special)})")


def _operator(name: str, node: fx.Node, special: Show, *, tensors: bool) -> Code:
    args, spelling = node.args, registry.spelling_of(node)
    if name == "getitem":
        return Code(f"{to_code(args[0], special).within(ATOM)}[{index(args[1], special)}]")
    if (infix := _infix(node)) is not None:
        return _binary(infix, args, special)
    declared = None if spelling is None else spelling.operator
    if declared is not None and declared.prefix:
        return Code(f"{declared.prefix}{to_code(args[0], special).within(UNARY)}", UNARY)
    if declared is not None and declared.infix is not None:  # an in-place operator
        if tensors:
            method = f"{declared.name}_"
            return Code(f"{to_code(args[0], special).within(ATOM)}.{method}({to_code(args[1], special).text})")
        return _binary(declared.infix, args, special)
    return Code(f"operator.{name}({arguments(args, node.kwargs, special)})")


def _infix(node: fx.Node) -> Infix | None:
    """Return the infix operator of a node with two operands; None if it is written as a call."""
    if node.target in _IDENTITY:
        return Infix(_IDENTITY[node.target], _COMPARISON)
    spelling = registry.spelling_of(node)
    if spelling is None or spelling.in_place or spelling.reflected or node.kwargs or len(node.args) != 2:
        return None
    if node.op == "call_function" and not name_of(node.target).startswith("operator."):  # type: ignore[arg-type]
        return None
    return None if str(node.target).startswith("__") else spelling.operator.infix


def _binary(infix: Infix, args: tuple[Any, ...], special: Show) -> Code:
    sign, precedence = infix.sign, infix.precedence
    left, right = (to_code(a, special) for a in args)
    if sign == "**":
        base, exponent = left.within(POWER + 1), right.within(UNARY)
        simple = all(_is_simple(c.text) for c in (left, right))
        return Code(f"{base}**{exponent}" if simple else f"{base} ** {exponent}", POWER)
    # Comparisons are not associative; all other operators are left-associative.
    first = left.within(precedence + 1 if precedence == _COMPARISON else precedence)
    return Code(f"{first} {sign} {right.within(precedence + 1)}", precedence)


def _is_simple(text: str) -> bool:
    """Return True for operands that a formatter writes without spaces around `**`: names, paths and numbers."""
    return all(part.isalnum() for part in text.lstrip("-").replace("_", "a").split("."))


def is_operator(node: fx.Node) -> bool:
    """Return True if a node is written as an infix operator."""
    return node.op in {"call_function", "call_method"} and _infix(node) is not None


def is_setitem(node: fx.Node) -> bool:
    """Return True if a node assigns entries of its first argument."""
    return node.target is operator.setitem
