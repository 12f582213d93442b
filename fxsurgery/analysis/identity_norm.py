"""A batch norm that computes the identity, by undoing statistics that were measured on data.

    running_mean = m, running_var = v n / (n - 1), weight = sqrt(running_var + eps), bias = running_mean

with m and v over the n values of a channel. In eval mode it is the identity for any m and v. In train mode it
normalizes with batch statistics, so m and v must be those of the actual values: the default pair 0 and 1 works in eval
mode and fails at the first training step. PyTorch stores the unbiased variance as running variance, so training steps
do not change it; the measured batch itself is scaled by sqrt(n / (n - 1)).
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
    """Return why statistics cannot be measured in train mode (norms need several values per channel); else None."""
    try:
        read_values(program, (), training=True)
    except Exception as error:  # noqa: BLE001 -- the user's modules may raise anything
        told = first_line(error)
        return Refusal("output", f"the program gives no statistics in train mode: {told}")
    return None


def undoing(values: Tensor, like: _BatchNorm | None = None) -> _BatchNorm | None:
    """Return the identity batch norm for `values`, (batch, channels, ...), with their device and dtype.

    Args:
        values: values to normalize, measured in train mode on data.
        like: a norm whose `eps` and `momentum` are used.

    Returns:
        None if there is only one value per channel, which has no variance.
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
