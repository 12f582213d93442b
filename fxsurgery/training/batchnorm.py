"""Re-estimate batch norm statistics: surgery changes what flows into them."""

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fxsurgery.training.loop import device_of, forward
from fxsurgery.training.task import Task, set_epoch

SAMPLES = 2_000
"""Enough for statistics, by the one-shot search literature."""


def recalibrate(model: nn.Module, task: Task, *, batches: int | None = None, device: str | None = None) -> int:
    """Set every batch norm's running statistics to their cumulative average over training batches.

    Only batch norms run in train mode; weights stay, dropout is off, momenta are put back.

    Args:
        model: changed in place, left in eval mode.
        task: where the batches come from.
        batches: how many; enough for 2,000 samples unless given.
        device: where the model is unless given.

    Returns:
        How many batch norms there are; with none, no batch is run.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    if not norms:
        return 0
    where = device_of(model, device)
    momenta = {norm: norm.momentum for norm in norms}
    model.eval().to(where)
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    set_epoch(task.train_data, 0)
    seen = 0
    with torch.no_grad():
        for count, batch in enumerate(task.train_data, start=1):
            inputs, _ = task.split(send_to_device(batch, where))
            forward(model, inputs)
            seen += len(inputs[0])
            if count == batches or (batches is None and seen >= SAMPLES):
                break
    for norm, momentum in momenta.items():
        norm.momentum = momentum
        norm.eval()
    return len(norms)
