"""Values over whole dims: sums, means, extremes; and scans, where each entry depends on others of its dim."""

from torch import nn

from fxsurgery.ops.operator import Kind, Operator

DECLARED = (
    *(
        Operator(name=name, kind=Kind.REDUCTION)
        for name in (
            "sum mean amax amin aminmax max min var std norm logsumexp prod argmax argmin var_mean std_mean median "
            "nanmedian nanmean nansum mode any all count_nonzero trace dist histc bincount cosine_similarity "
            "pairwise_distance quantile nanquantile"
        ).split()
    ),
    Operator(name="softmax", kind=Kind.SCAN, modules=(nn.Softmax, nn.Softmax2d)),
    Operator(name="log_softmax", kind=Kind.SCAN, modules=(nn.LogSoftmax,)),
    Operator(name="softmin", kind=Kind.SCAN, modules=(nn.Softmin,)),
    *(Operator(name=name, kind=Kind.SCAN) for name in "cumsum cumprod logcumsumexp normalize diff".split()),
    Operator(name="glu", kind=Kind.ARITHMETIC, modules=(nn.GLU,)),
)
