"""The call of a node as a person would write it: operators, methods, `F.relu(x)`."""

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
from fxsurgery.saving.standalone.literals import ATOM, POWER, UNARY, Code, Show, index, shown
from fxsurgery.saving.standalone.literals import name as name_as_code

_IDENTITY: Mapping[object, str] = {operator.is_: "is", operator.is_not: "is not"}
_COMPARISON = 7


def call(node: fx.Node, special: Show, *, tensors: bool) -> Code:
    """What `node`, a function or method call, does.

    Args:
        node: the node.
        special: the code of the nodes that it reads.
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
        return Code(f"{shown(node.args[0], special).within(ATOM)}.{name_as_code(node.args[1])}")
    called = name.replace("torch.nn.functional.", "F.")
    return Code(f"{called}({arguments(node.args, _beyond_defaults(function, node), special)})")


def arguments(args: tuple[Any, ...], kwargs: Mapping[str, Any], special: Show) -> str:
    """What stands between the parentheses of a call."""
    given = [shown(a, special).text for a in args]
    return ", ".join([*given, *(f"{name_as_code(k)}={shown(v, special).text}" for k, v in kwargs.items())])


def _beyond_defaults(function: Any, node: fx.Node) -> dict[str, Any]:  # noqa: ANN401 -- any function
    """The arguments by name that are not what they are anyway."""
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
        return Code(f"{spelling.operator.prefix}{shown(args[0], special).within(UNARY)}", UNARY)
    receiver = shown(args[0], special).within(ATOM)
    return Code(f"{receiver}.{name_as_code(name)}({arguments(args[1:], node.kwargs, special)})")


def _operator(name: str, node: fx.Node, special: Show, *, tensors: bool) -> Code:
    args, spelling = node.args, registry.spelling_of(node)
    if name == "getitem":
        return Code(f"{shown(args[0], special).within(ATOM)}[{index(args[1], special)}]")
    if (infix := _infix(node)) is not None:
        return _binary(infix, args, special)
    declared = None if spelling is None else spelling.operator
    if declared is not None and declared.prefix:
        return Code(f"{declared.prefix}{shown(args[0], special).within(UNARY)}", UNARY)
    if declared is not None and declared.infix is not None:  # it overwrites
        if tensors:
            method = f"{declared.name}_"
            return Code(f"{shown(args[0], special).within(ATOM)}.{method}({shown(args[1], special).text})")
        return _binary(declared.infix, args, special)
    return Code(f"operator.{name}({arguments(args, node.kwargs, special)})")


def _infix(node: fx.Node) -> Infix | None:
    """The sign that stands between the two operands of a node; `None` where it is written otherwise."""
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
    left, right = (shown(a, special) for a in args)
    if sign == "**":
        base, exponent = left.within(POWER + 1), right.within(UNARY)
        simple = all(_is_simple(c.text) for c in (left, right))
        return Code(f"{base}**{exponent}" if simple else f"{base} ** {exponent}", POWER)
    # Comparisons do not group; the others group to the left.
    first = left.within(precedence + 1 if precedence == _COMPARISON else precedence)
    return Code(f"{first} {sign} {right.within(precedence + 1)}", precedence)


def _is_simple(text: str) -> bool:
    """Whether a formatter sets no spaces around the power of it: a name, a path or a number."""
    return all(part.isalnum() for part in text.lstrip("-").replace("_", "a").split("."))


def is_operator(node: fx.Node) -> bool:
    """Whether a node is written as an operator between its arguments."""
    return node.op in {"call_function", "call_method"} and _infix(node) is not None


def is_setitem(node: fx.Node) -> bool:
    """Whether a node writes to entries of its first argument."""
    return node.target is operator.setitem
