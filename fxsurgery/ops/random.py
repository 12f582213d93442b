"""Random numbers: dropout and its kin, which are the identity in eval mode, and draws."""

from torch import nn

from fxsurgery.ops.operator import Kind, Operator


def _dropout(name: str, *modules: type[nn.Module], keeps_zero: bool = True) -> Operator:
    return Operator(
        name=name,
        kind=Kind.RANDOM,
        modules=modules,
        role="identity",
        follows_mode=True,
        draws="regularizes",
        keeps_zero=keeps_zero,
    )


DROPOUTS = (
    _dropout("dropout", nn.Dropout),
    _dropout("dropout1d", nn.Dropout1d),
    _dropout("dropout2d", nn.Dropout2d),
    _dropout("dropout3d", nn.Dropout3d),
    _dropout("feature_dropout"),
    _dropout("alpha_dropout", nn.AlphaDropout, keeps_zero=False),
    _dropout("feature_alpha_dropout", nn.FeatureAlphaDropout, keeps_zero=False),
)

DECLARED = (
    *DROPOUTS,
    Operator(name="rrelu", kind=Kind.RANDOM, modules=(nn.RReLU,), follows_mode=True, draws="regularizes"),
    *(
        Operator(name=name, kind=Kind.RANDOM, draws="samples")
        for name in (
            "gumbel_softmax bernoulli multinomial poisson binomial rand_like randn_like randint_like uniform random "
            "exponential geometric cauchy log_normal"
        ).split()
    ),
    Operator(name="normal", kind=Kind.RANDOM, draws="samples", creates=True),
    Operator(name="randint", kind=Kind.RANDOM, draws="samples", creates=True),
    Operator(name="randperm", kind=Kind.RANDOM, draws="samples", creates=True),
    Operator(name="rand", kind=Kind.RANDOM, draws="samples", creates=True, takes_sizes_apart=True),
    Operator(name="randn", kind=Kind.RANDOM, draws="samples", creates=True, takes_sizes_apart=True),
)
