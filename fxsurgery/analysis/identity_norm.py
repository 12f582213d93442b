"""A batch norm that changes nothing: it undoes statistics that were measured on data.

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
    """Why nothing can be measured in train mode; `None` if it can: norms in it want several values a channel."""
    try:
        read_values(program, (), training=True)
    except Exception as error:  # noqa: BLE001 -- the user's modules and assertions raise whatever they like
        told = first_line(error)
        return Refusal("output", f"the program gives no statistics in train mode: {told}")
    return None


def undoing(values: Tensor, like: _BatchNorm | None = None) -> _BatchNorm | None:
    """The batch norm for `values`, (batch, channels, ...), measured in train mode; on their device, of their dtype.

    Args:
        values: what it will normalize, on data.
        like: a norm whose `eps` and `momentum` it takes.

    Returns:
        `None` where there is a single value a channel, which has no variance.
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
