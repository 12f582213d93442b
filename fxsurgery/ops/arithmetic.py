"""Elementwise operators on several tensors, with broadcasting."""

import torch

from fxsurgery.ops.facets import Infix
from fxsurgery.ops.fast import calls
from fxsurgery.ops.operator import Kind, Operator

ATEN = torch.ops.aten

SUM, PRODUCT, POWER, COMPARISON = 12, 13, 18, 7
"""Precedences of Python's operators."""


def _arithmetic(name: str, *aliases: str) -> Operator:
    return Operator(name=name, kind=Kind.ARITHMETIC, aliases=aliases)


def _compared(name: str, sign: str, *aliases: str) -> Operator:
    return Operator(name=name, kind=Kind.ARITHMETIC, aliases=aliases, dunder=name, infix=Infix(sign, COMPARISON))


def _bitwise(dunder: str, sign: str, precedence: int, name: str) -> Operator:
    return Operator(name=name, kind=Kind.ARITHMETIC, dunder=dunder, infix=Infix(sign, precedence))


ADD = Operator(
    name="add",
    fast_call=calls.elementwise(ATEN.add.Tensor),
    kind=Kind.ARITHMETIC,
    keeps_dtype=True,
    dunder="add",
    infix=Infix("+", SUM),
)
SUB = Operator(
    name="sub",
    kind=Kind.ARITHMETIC,
    aliases=("subtract",),
    dunder="sub",
    keeps_dtype=True,
    reflected=(torch.rsub,),
    aten=("rsub",),
    cancels=True,
    fast_call=calls.elementwise(ATEN.sub.Tensor),
    infix=Infix("-", SUM),
)
MUL = Operator(
    name="mul",
    kind=Kind.ARITHMETIC,
    keeps_dtype=True,
    aliases=("multiply",),
    dunder="mul",
    fast_call=calls.elementwise(ATEN.mul.Tensor),
    infix=Infix("*", PRODUCT),
)
DIV = Operator(
    name="div",
    kind=Kind.ARITHMETIC,
    aliases=("divide", "true_divide"),
    dunder="truediv",
    keeps_dtype=True,
    cancels=True,
    fast_call=calls.elementwise(ATEN.div.Tensor),
    infix=Infix("/", PRODUCT),
)
POW = Operator(name="pow", kind=Kind.ARITHMETIC, keeps_dtype=True, dunder="pow", infix=Infix("**", POWER))

DECLARED = (
    ADD,
    SUB,
    MUL,
    DIV,
    POW,
    Operator(name="floor_divide", kind=Kind.ARITHMETIC, dunder="floordiv", infix=Infix("//", PRODUCT)),
    Operator(name="remainder", kind=Kind.ARITHMETIC, dunder="mod", infix=Infix("%", PRODUCT)),
    _compared("eq", "=="),
    _compared("ne", "!=", "not_equal"),
    _compared("lt", "<", "less"),
    _compared("le", "<=", "less_equal"),
    _compared("gt", ">", "greater"),
    _compared("ge", ">=", "greater_equal"),
    _bitwise("and", "&", 10, "bitwise_and"),
    _bitwise("xor", "^", 9, "bitwise_xor"),
    _bitwise("or", "|", 8, "bitwise_or"),
    _bitwise("lshift", "<<", 11, "bitwise_left_shift"),
    _bitwise("rshift", ">>", 11, "bitwise_right_shift"),
    _arithmetic("atan2", "arctan2"),
    *map(
        _arithmetic,
        "addcdiv addcmul complex copysign float_power fmax fmin fmod gcd heaviside hypot igamma igammac isclose lcm "
        "ldexp lerp logaddexp logaddexp2 logical_and logical_or logical_xor masked_fill maximum minimum nextafter "
        "polar where xlogy".split(),
    ),
    _arithmetic("copy"),
)
