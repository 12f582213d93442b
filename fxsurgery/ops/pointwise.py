"""Elementwise functions of one tensor: activations, arithmetic steps, tests of entries."""

import torch
from torch import nn

from fxsurgery.ops import module_sizes
from fxsurgery.ops.facets import OperandArgument, Role, Weight
from fxsurgery.ops.fast import calls, modules
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules.parametric import prelu

ATEN = torch.ops.aten

_KEEPS_DTYPE = frozenset(
    "relu relu6 hardtanh hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu elu mish softplus exp sqrt rsqrt "
    "square clamp clamp_min clamp_max reciprocal erf sin cos log".split()
)
_FAST = {
    "relu6": ATEN.hardtanh.default,
    **{
        name: getattr(ATEN, name).default
        for name in ("relu hardtanh hardswish hardsigmoid silu gelu sigmoid tanh leaky_relu elu mish softplus").split()
    },
}
"""ATen operations of functions that take one tensor and keep its shape and dtype."""


def _function(name: str, role: Role | None, *aliases: str, module: type[nn.Module] | None = None) -> Operator:
    return Operator(
        name=name,
        kind=Kind.POINTWISE,
        role=role,
        aliases=aliases,
        modules=() if module is None else (module,),
        keeps_dtype=name in _KEEPS_DTYPE,
        fast_module=None if (op := _FAST.get(name)) is None or module is None else modules.applied(op),
        fast_call=None if op is None else calls.applied(op),
    )


ACTIVATIONS = (
    _function("relu", "activation", module=nn.ReLU),
    _function("relu6", "activation", module=nn.ReLU6),
    _function("leaky_relu", "activation", module=nn.LeakyReLU),
    _function("elu", "activation", module=nn.ELU),
    _function("celu", "activation", module=nn.CELU),
    _function("selu", "activation", module=nn.SELU),
    _function("gelu", "activation", module=nn.GELU),
    _function("silu", "activation", module=nn.SiLU),
    _function("mish", "activation", module=nn.Mish),
    _function("hardswish", "activation", module=nn.Hardswish),
    _function("hardsigmoid", "activation", module=nn.Hardsigmoid),
    _function("hardtanh", "activation", module=nn.Hardtanh),
    _function("sigmoid", "activation", "expit", module=nn.Sigmoid),
    _function("tanh", "activation", module=nn.Tanh),
    _function("softplus", "activation", module=nn.Softplus),
    _function("softsign", "activation", module=nn.Softsign),
    _function("logsigmoid", "activation", "log_sigmoid", module=nn.LogSigmoid),
    _function("tanhshrink", "activation", module=nn.Tanhshrink),
    _function("hardshrink", "activation", module=nn.Hardshrink),
    _function("softshrink", "activation", module=nn.Softshrink),
    _function("threshold", "activation", module=nn.Threshold),
    _function("clamp", "activation", "clip"),
    _function("clamp_min", "activation"),
    _function("clamp_max", "activation"),
    Operator(name="abs", kind=Kind.POINTWISE, role="activation", aliases=("absolute",), dunder="abs", keeps_dtype=True),
)

STEPS = (
    Operator(
        name="neg", kind=Kind.POINTWISE, role="step", aliases=("negative",), dunder="neg", prefix="-", keeps_dtype=True
    ),
    _function("exp", "step"),
    _function("square", "step"),
    _function("sqrt", "step"),
    _function("erf", "step"),
    _function("sin", "step"),
    _function("cos", "step"),
)

IDENTITIES = (
    Operator(
        name="identity", kind=Kind.POINTWISE, role="identity", modules=(nn.Identity,), fast_module=modules.nothing
    ),
    Operator(name="positive", kind=Kind.POINTWISE, role="identity", dunder="pos", prefix="+"),
)

_OTHERS = {
    "acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan", "atanh": "arctanh",
    "angle": "", "ceil": "", "conj_physical": "", "cosh": "", "deg2rad": "", "digamma": "psi", "erfc": "",
    "erfinv": "", "exp2": "", "expm1": "", "floor": "", "frac": "", "i0": "", "isfinite": "", "isinf": "",
    "isnan": "", "isneginf": "", "isposinf": "", "isreal": "", "lgamma": "gammaln", "log": "", "log10": "",
    "log1p": "", "log2": "", "logical_not": "", "logit": "", "mvlgamma": "multigammaln", "nan_to_num": "",
    "polygamma": "", "rad2deg": "", "reciprocal": "", "round": "", "rsqrt": "", "sgn": "", "sign": "", "signbit": "",
    "sinc": "", "sinh": "", "tan": "", "trunc": "fix",
}  # fmt: skip
"""Functions without further facts, by name, with their other names."""

TESTS_AND_ROUNDING = tuple(_function(name, None, *others.split()) for name, others in _OTHERS.items())

INVERTED = Operator(name="bitwise_not", kind=Kind.POINTWISE, dunder="invert", prefix="~")

PRELU = Operator(
    name="prelu",
    kind=Kind.POINTWISE,
    size_attributes=module_sizes.prelu,
    modules=(nn.PReLU,),
    rule=prelu,
    weight=Weight(OperandArgument(1, "weight"), outputs=0, inputs=None),
)
"""Leaky ReLU with one learned slope for all channels or one per channel."""

DECLARED = (*ACTIVATIONS, *STEPS, *IDENTITIES, *TESTS_AND_ROUNDING, INVERTED, PRELU)
