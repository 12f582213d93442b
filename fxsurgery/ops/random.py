"""Random operators: dropout variants, which are the identity in eval mode, and sampling."""

from torch import nn

from fxsurgery.ops.fast import calls
from fxsurgery.ops.fast import modules as fast_modules
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules.call import Rule
from fxsurgery.ops.rules.movement import creation, draw, same


def _dropout(
    name: str, *modules: type[nn.Module], rank: int | None = None, keeps_zero: bool = True, aten: str = ""
) -> Operator:
    return Operator(
        name=name,
        kind=Kind.RANDOM,
        modules=modules,
        rank=rank,
        role="identity",
        draws="regularizes",
        keeps_zero=keeps_zero,
        aten=tuple(aten.split()),
        rule=same if keeps_zero else None,
        computes=not keeps_zero,
        fast_module=fast_modules.nothing,
        fast_call=calls.dropout if name == "dropout" else None,
    )


def _drawn(name: str, rule: Rule | None = None, *, creates: bool = False, apart: bool = False) -> Operator:
    return Operator(
        name=name,
        kind=Kind.RANDOM,
        draws="samples",
        creates=creates,
        takes_sizes_apart=apart,
        rule=rule,
        computes=rule is None,
    )


DROPOUTS = (
    _dropout("dropout", nn.Dropout, aten="native_dropout"),
    _dropout("dropout1d", nn.Dropout1d, rank=1),
    _dropout("dropout2d", nn.Dropout2d, rank=2),
    _dropout("dropout3d", nn.Dropout3d, rank=3),
    _dropout("feature_dropout"),
    _dropout("alpha_dropout", nn.AlphaDropout, keeps_zero=False),
    _dropout("feature_alpha_dropout", nn.FeatureAlphaDropout, keeps_zero=False),
)

DECLARED = (
    *DROPOUTS,
    Operator(
        name="rrelu",
        kind=Kind.RANDOM,
        modules=(nn.RReLU,),
        aten=("rrelu_with_noise", "rrelu_with_noise_functional"),
        draws="regularizes",
    ),
    *(_drawn(name, draw) for name in "rand_like randn_like randint_like bernoulli uniform exponential".split()),
    *map(_drawn, "gumbel_softmax multinomial poisson binomial random geometric cauchy log_normal".split()),
    _drawn("normal", draw, creates=True),
    _drawn("randint", creation, creates=True),
    _drawn("randperm", creation, creates=True),
    _drawn("rand", creation, creates=True, apart=True),
    _drawn("randn", creation, creates=True, apart=True),
)
