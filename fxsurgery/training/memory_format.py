"""The memory format of the weights of convolutions during training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from fxsurgery.argument_names import assigned, keyword
from fxsurgery.errors import DataError, TrainingError
from fxsurgery.training.recipe import MemoryFormat

_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
_NO_VIEW = "view size is not compatible"
"""PyTorch's message for `view` of a feature map that is not contiguous."""


def conv_weights(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of the 2-D and 3-D convolutions, each once: all that has a memory format to choose."""
    convs = (module for module in model.modules() if isinstance(module, _ConvNd))
    weights = (dict(conv.named_parameters(recurse=False)).get("weight") for conv in convs)
    found = {id(weight): weight for weight in weights if weight is not None and weight.dim() in _CHANNELS_LAST}
    return list(found.values())


@contextmanager
def laid_out(model: nn.Module, memory_format: MemoryFormat | None) -> Iterator[None]:
    """Keep the weights of convolutions in a memory format within the block, and restore their own afterwards.

    A convolution gives its output in the format of its weight, where its kernel can, so the maps follow. Parameters
    stay the same objects.

    Args:
        model: on the device where it runs.
        memory_format: `None` leaves the weights as they are.

    Raises:
        TrainingError: the model takes a `view` of a map, which channels_last does not allow.
    """
    held = [] if memory_format is None else [(weight, weight.data) for weight in conv_weights(model)]
    for weight, before in held:
        wanted = _CHANNELS_LAST[before.dim()] if memory_format == "channels_last" else torch.contiguous_format
        weight.data = before.contiguous(memory_format=wanted)
    try:
        yield
    except DataError as error:
        if held and _NO_VIEW in str(error):
            raise TrainingError(
                f"the model cannot train with {assigned('memory_format', memory_format)}: its forward calls `view` on "
                f"a map that lies otherwise; call `reshape` or `flatten` there, or leave {keyword('memory_format')} out"
            ) from error
        raise
    finally:
        for weight, before in held:
            weight.data = before.copy_(weight.data)
