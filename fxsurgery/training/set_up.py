"""Prepare a model for training: device, number format and memory format, all restored afterwards."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn

from fxsurgery.seeding import flushed_denormals, mix, seeded
from fxsurgery.training.device import Device, accelerated
from fxsurgery.training.memory_format import laid_out
from fxsurgery.training.model_state import borrowed, training_only
from fxsurgery.training.recipe import Recipe


@contextmanager
def set_up(
    model: nn.Module,
    recipe: Recipe,
    seed: int,
    parameters: Iterable[nn.Parameter] | None,
    device: Device | Accelerator,
) -> Iterator[tuple[Accelerator, torch.device, list[nn.Parameter]]]:
    """Prepare `model` and the process for training by a recipe, and restore both afterwards.

    Args:
        model: the model, which trains in place.
        recipe: number format, memory format and accumulation.
        seed: seed of the random numbers of layers.
        parameters: the parameters to train; `None` is all that require gradients.
        device: where to train.

    Yields:
        The accelerator, the device, and the parameters that train.

    Raises:
        DeviceError: the device is not there, or cannot do the precision asked for.
        TrainingError: nothing trains, or the model cannot run in the memory format.
    """
    with (
        accelerated(device, recipe.mixed_precision, recipe.accumulate) as (accelerator, there),
        seeded(own_seed(seed, accelerator.process_index), there),
        flushed_denormals(),
        borrowed(model, there),
        training_only(model, parameters) as chosen,
        laid_out(model, recipe.memory_format),
    ):
        model.train()
        yield accelerator, there, chosen


def own_seed(seed: int, rank: int) -> int:
    """Return the seed of one process's layers: processes must not drop the same units."""
    return mix(seed, 2**32 + rank) if rank else seed
