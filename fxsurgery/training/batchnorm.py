"""Re-estimate the running statistics of batch norms, which surgery leaves stale.

The running mean is the mean of the batches' means, the running variance that of their unbiased variances
(a cumulative average, not an exponential one). Weights stay, and everything but the norms is in eval mode.
"""

from itertools import islice

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxsurgery.argument_names import named
from fxsurgery.errors import DataError, DeviceError, TrainingError
from fxsurgery.option_types import Count, Seed, checked
from fxsurgery.surroundings import plain_surroundings
from fxsurgery.training.batches import epoch_of
from fxsurgery.training.device import Device, on_device
from fxsurgery.training.finite import not_finite, wrong_values
from fxsurgery.training.invocation import predict
from fxsurgery.training.model_state import borrowed, require_changeable
from fxsurgery.training.random_state import repeatable
from fxsurgery.training.task import Task


@checked(TrainingError, device=DeviceError)
@plain_surroundings()
def recalibrate(model: nn.Module, task: Task, *, batches: Count = 100, seed: Seed = 0, device: Device = None) -> int:
    """Re-estimate the batch norms of `model`, in place, on training batches.

    Args:
        model: what is recalibrated.
        task: the training data.
        batches: how many to use, at most one epoch of them.
        seed: of what the data draw at random, such as augmentations; the process's states stay as they were.
        device: where; `None` is where the model is.

    Returns:
        How many norms were re-estimated. Without any, no data are read.

    Raises:
        DataError: there is no batch, the model cannot take it, or the statistics come out not finite.
        DeviceError: there is no such device, or it is out of memory.
        TrainingError: the model was made in inference mode.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms or batches < 1:
        return 0
    require_changeable(model)
    momenta = [norm.momentum for norm in norms]
    with borrowed(model, device) as there, repeatable(task.train_data, seed, there) as source, torch.no_grad():
        model.eval()
        wrong: str | None = None
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        try:
            for drawn in islice(epoch_of(source, 0, "train_data", task.samples), batches):
                inputs, _ = task.take_apart(on_device(drawn.batch, there))
                predict(model, inputs)
                wrong = wrong or wrong_values((inputs.args, inputs.kwargs))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if broken := [name for name in not_finite(model) if name.endswith(("running_mean", "running_var"))]:
        blamed = f"since of {named('train_data')} {wrong}; clean the data"
        why = blamed if wrong else "though the inputs are; check the weights, which overflow"
        raise DataError(f"the re-estimated statistics {', '.join(broken[:3])} are not finite, {why}")
    return len(norms)
