"""A batch norm that is the identity: its scale and bias undo the statistics that were measured on data.

    running_mean = m, running_var = v n / (n - 1), weight = sqrt(running_var + eps), bias = running_mean

with m and v over the n values of a channel. In eval mode it is the identity whatever m and v are. In train mode it
normalizes with the statistics of the batch, so m and v have to be those that values have there: the default pair,
0 and 1, passes in eval mode and breaks at the first training step. The unbiased variance is what PyTorch keeps as
its running one, so training steps do not move it; a batch as measured comes out times sqrt(n / (n - 1)).
"""

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from fxsurgery.analysis.activations import read_values
from fxsurgery.analysis.cached import cached
from fxsurgery.errors import first_line
from fxsurgery.match import Refusal
from fxsurgery.ops.layers import BATCH_NORM
from fxsurgery.program import Program


@cached
def without_statistics(program: Program) -> Refusal | None:
    """Return why train mode has no statistics: its norms need several values per channel; `None` if it has."""
    try:
        read_values(program, (), training=True)
    except Exception as error:  # noqa: BLE001 -- the user's modules and assertions raise whatever they like
        return Refusal("output", f"the program gives no statistics in train mode: {first_line(error)}")
    return None


def undoing(values: Tensor, like: _BatchNorm | None = None) -> _BatchNorm | None:
    """Return the batch norm for `values` measured in train mode, with their device and dtype.

    Args:
        values: (batch, channels, ...) the values to normalize, on data.
        like: a norm that provides `eps` and `momentum`.

    Returns:
        The norm; `None` if there is a single value per channel, which has no variance.
    """
    by_channel = values.detach().double().transpose(0, 1).flatten(1)
    if by_channel.shape[1] < 2:
        return None
    norm = BATCH_NORM[values.dim()](values.shape[1], device=values.device, dtype=values.dtype)
    if like is not None:
        norm.eps, norm.momentum = like.eps, like.momentum
    mean, variance = by_channel.mean(1), by_channel.var(1)
    measured = {"running_mean": mean, "running_var": variance, "weight": (variance + norm.eps).sqrt(), "bias": mean}
    norm.load_state_dict({**norm.state_dict(), **measured})
    return norm
