"""Functions of the single entries of one tensor: activations, the steps of formulas, tests of entries."""

from torch import nn

from fxsurgery.ops.facets import Argument, Role, Weight
from fxsurgery.ops.operator import Kind, Operator


def _function(name: str, role: Role | None, *aliases: str, modules: tuple[type[nn.Module], ...] = ()) -> Operator:
    return Operator(name=name, kind=Kind.POINTWISE, role=role, aliases=aliases, modules=modules)


ACTIVATIONS = (
    _function("relu", "activation", modules=(nn.ReLU,)),
    _function("relu6", "activation", modules=(nn.ReLU6,)),
    _function("leaky_relu", "activation", modules=(nn.LeakyReLU,)),
    _function("elu", "activation", modules=(nn.ELU,)),
    _function("celu", "activation", modules=(nn.CELU,)),
    _function("selu", "activation", modules=(nn.SELU,)),
    _function("gelu", "activation", modules=(nn.GELU,)),
    _function("silu", "activation", modules=(nn.SiLU,)),
    _function("mish", "activation", modules=(nn.Mish,)),
    _function("hardswish", "activation", modules=(nn.Hardswish,)),
    _function("hardsigmoid", "activation", modules=(nn.Hardsigmoid,)),
    _function("hardtanh", "activation", modules=(nn.Hardtanh,)),
    _function("sigmoid", "activation", "expit", modules=(nn.Sigmoid,)),
    _function("tanh", "activation", modules=(nn.Tanh,)),
    _function("softplus", "activation", modules=(nn.Softplus,)),
    _function("softsign", "activation", modules=(nn.Softsign,)),
    _function("logsigmoid", "activation", "log_sigmoid", modules=(nn.LogSigmoid,)),
    _function("tanhshrink", "activation", modules=(nn.Tanhshrink,)),
    _function("hardshrink", "activation", modules=(nn.Hardshrink,)),
    _function("softshrink", "activation", modules=(nn.Softshrink,)),
    _function("threshold", "activation", modules=(nn.Threshold,)),
    _function("clamp", "activation", "clip"),
    _function("clamp_min", "activation"),
    _function("clamp_max", "activation"),
    Operator(name="abs", kind=Kind.POINTWISE, role="activation", aliases=("absolute",), dunder="abs"),
)

STEPS = (
    Operator(name="neg", kind=Kind.POINTWISE, role="step", aliases=("negative",), dunder="neg", prefix="-"),
    _function("exp", "step"),
    _function("square", "step"),
    _function("sqrt", "step"),
    _function("erf", "step"),
    _function("sin", "step"),
    _function("cos", "step"),
)

IDENTITIES = (
    _function("identity", "identity", modules=(nn.Identity,)),
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
"""Functions about whose values nothing is asked, by name, with their other names."""

TESTS_AND_ROUNDING = tuple(_function(name, None, *others.split()) for name, others in _OTHERS.items())

INVERTED = Operator(name="bitwise_not", kind=Kind.POINTWISE, dunder="invert", prefix="~")

PRELU = Operator(
    name="prelu",
    kind=Kind.POINTWISE,
    modules=(nn.PReLU,),
    weight=Weight(Argument(1, "weight"), outputs=0, inputs=None),
)
"""One slope for all channels, or one for each."""

DECLARED = (*ACTIVATIONS, *STEPS, *IDENTITIES, *TESTS_AND_ROUNDING, INVERTED, PRELU)
