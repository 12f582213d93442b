"""The call of a node as a person would write it: operators, methods, `F.relu(x)`."""

import builtins
import inspect
import operator
from collections.abc import Mapping
from typing import Any

from torch import fx
from torch.nn import functional as F  # noqa: N812 -- as everywhere in torch

from fxsurgery.saving.functions import name_of
from fxsurgery.saving.standalone.literals import ATOM, POWER, UNARY, Code, Show, index, shown
from fxsurgery.saving.standalone.literals import name as name_as_code

BINARY: Mapping[str, tuple[str, int]] = {
    "or_": ("|", 8), "xor": ("^", 9), "and_": ("&", 10), "lshift": ("<<", 11), "rshift": (">>", 11),
    "add": ("+", 12), "sub": ("-", 12), "mul": ("*", 13), "truediv": ("/", 13), "floordiv": ("//", 13),
    "mod": ("%", 13), "matmul": ("@", 13), "pow": ("**", POWER),
    "eq": ("==", 7), "ne": ("!=", 7), "lt": ("<", 7), "le": ("<=", 7), "gt": (">", 7), "ge": (">=", 7),
    "is_": ("is", 7), "is_not": ("is not", 7),
}  # fmt: skip
METHODS: Mapping[str, str] = {
    **{name: name for name in ("add", "sub", "mul", "floordiv", "matmul", "pow", "eq", "ne", "lt", "le", "gt", "ge")},
    "div": "truediv", "true_divide": "truediv", "multiply": "mul", "floor_divide": "floordiv",
    "bitwise_and": "and_", "bitwise_or": "or_",
}  # fmt: skip
"""Tensor methods that are operators."""
SIGNS = {"neg": "-", "invert": "~", "pos": "+"}
IN_PLACE = {
    "iadd": "add_", "isub": "sub_", "imul": "mul_", "itruediv": "div_", "ifloordiv": "floor_divide_", "ipow": "pow_",
    "iand": "bitwise_and_", "ior": "bitwise_or_", "ixor": "bitwise_xor_",
}  # fmt: skip


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
    if not node.kwargs and name in METHODS and len(args) == 2:
        return _binary(METHODS[name], args, special)
    if not node.kwargs and name == "neg" and len(args) == 1:
        return Code(f"-{shown(args[0], special).within(UNARY)}", UNARY)
    receiver = shown(args[0], special).within(ATOM)
    return Code(f"{receiver}.{name_as_code(name)}({arguments(args[1:], node.kwargs, special)})")


def _operator(name: str, node: fx.Node, special: Show, *, tensors: bool) -> Code:
    args = node.args
    if name == "getitem":
        return Code(f"{shown(args[0], special).within(ATOM)}[{index(args[1], special)}]")
    if name in BINARY:
        return _binary(name, args, special)
    if name in SIGNS:
        return Code(f"{SIGNS[name]}{shown(args[0], special).within(UNARY)}", UNARY)
    if name in IN_PLACE:
        if tensors:
            return Code(f"{shown(args[0], special).within(ATOM)}.{IN_PLACE[name]}({shown(args[1], special).text})")
        return _binary({"iand": "and_", "ior": "or_"}.get(name, name[1:]), args, special)
    return Code(f"operator.{name}({arguments(args, node.kwargs, special)})")


def _binary(name: str, args: tuple[Any, ...], special: Show) -> Code:
    sign, precedence = BINARY[name]
    left, right = (shown(a, special) for a in args)
    if sign == "**":
        base, exponent = left.within(POWER + 1), right.within(UNARY)
        simple = all(_is_simple(c.text) for c in (left, right))
        return Code(f"{base}**{exponent}" if simple else f"{base} ** {exponent}", POWER)
    # Comparisons do not group; the others group to the left.
    first = left.within(precedence + 1 if precedence == 7 else precedence)
    return Code(f"{first} {sign} {right.within(precedence + 1)}", precedence)


def _is_simple(text: str) -> bool:
    """Whether a formatter sets no spaces around the power of it: a name, a path or a number."""
    return all(part.isalnum() for part in text.lstrip("-").replace("_", "a").split("."))


def is_operator(node: fx.Node) -> bool:
    """Whether a node is written as an operator between its arguments."""
    if node.op == "call_method":
        return not node.kwargs and len(node.args) == 2 and str(node.target) in METHODS
    return node.op == "call_function" and any(node.target is getattr(operator, name) for name in BINARY)


def is_setitem(node: fx.Node) -> bool:
    """Whether a node writes to entries of its first argument."""
    return node.target is operator.setitem
