"""Reductions over dims (sums, means, extremes) and scans, in which each entry depends on others of its dim."""

from torch import nn

from fxsurgery.ops.fast import calls
from fxsurgery.ops.operator import Kind, Operator
from fxsurgery.ops.rules.call import Rule
from fxsurgery.ops.rules.movement import gated_halves
from fxsurgery.ops.rules.reduction import reduction, scan


def _reduced(name: str, rule: Rule | None = reduction) -> Operator:
    return Operator(name=name, kind=Kind.REDUCTION, rule=rule)


def _without_rule(name: str) -> Operator:
    return _reduced(name, None)


MEAN = Operator(name="mean", kind=Kind.REDUCTION, rule=reduction, fast_call=calls.mean)

DECLARED = (
    MEAN,
    *map(
        _reduced,
        "sum amax amin max min var std logsumexp prod argmax argmin var_mean std_mean median any all "
        "count_nonzero".split(),
    ),
    Operator(name="norm", kind=Kind.REDUCTION, aten=("linalg_vector_norm",), rule=reduction),
    *map(
        _without_rule,
        "aminmax nanmedian nanmean nansum mode trace dist histc bincount cosine_similarity pairwise_distance quantile "
        "nanquantile".split(),
    ),
    Operator(
        name="softmax",
        kind=Kind.SCAN,
        modules=(nn.Softmax, nn.Softmax2d),
        aten=("_softmax", "_safe_softmax"),
        rule=scan,
        keeps_dtype=True,
        fast_call=calls.softmax,
    ),
    Operator(name="log_softmax", kind=Kind.SCAN, modules=(nn.LogSoftmax,), aten=("_log_softmax",), rule=scan),
    Operator(name="cumsum", kind=Kind.SCAN, rule=scan),
    Operator(name="softmin", kind=Kind.SCAN, modules=(nn.Softmin,)),
    *(Operator(name=name, kind=Kind.SCAN) for name in "cumprod logcumsumexp normalize diff".split()),
    Operator(name="glu", kind=Kind.ARITHMETIC, modules=(nn.GLU,), rule=gated_halves),
)
