"""PyTorch layer classes by function, taken from the declarations: to create a layer or to test its type."""

from collections.abc import Callable, Mapping

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from fxsurgery.ops import contractions, norms, pooling

CONVOLUTIONS = tuple(operator.modules[0] for operator in contractions.CONVOLUTIONS)
TRANSPOSED_CONVOLUTIONS = tuple(operator.modules[0] for operator in contractions.TRANSPOSED_CONVOLUTIONS)
MIXING = (*contractions.LINEAR.modules, *CONVOLUTIONS)
"""Layer classes whose weight is a matrix of outputs and inputs, or one per kernel position."""
BATCH_NORMS = tuple(kind for kind in norms.BATCH_NORM.modules[:3] if issubclass(kind, _BatchNorm))

CONVOLUTION: Mapping[int, Callable[..., _ConvNd]] = dict(enumerate(CONVOLUTIONS, start=3))  # type: ignore[arg-type]
AVERAGE_POOL: Mapping[int, Callable[..., nn.Module]] = {
    dims: operator.modules[0] for dims, operator in enumerate(pooling.AVERAGE, start=3)
}
MAX_POOL: Mapping[int, Callable[..., nn.Module]] = {
    dims: operator.modules[0] for dims, operator in enumerate(pooling.MAXIMUM, start=3)
}
BATCH_NORM: Mapping[int, type[_BatchNorm]] = {2: BATCH_NORMS[0], **dict(enumerate(BATCH_NORMS, start=3))}
"""Layer class by the number of dims of its input, including the batch."""
