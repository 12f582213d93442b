"""A model borrowed for a while: moved, frozen in part, and given back as it was but for its weights."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from fxsurgery.errors import TrainingError
from fxsurgery.training.device import Device, resolve


@contextmanager
def borrowed(model: nn.Module, device: Device) -> Iterator[torch.device]:
    """Keep `model` on `device` (`None`: where it is); then put it and its train flags back.

    Tensors are moved in place, so its parameters stay the same objects.

    Raises:
        DeviceError: there is no such device.
    """
    tensor = next((t for t in (*model.parameters(), *model.buffers())), None)
    home = torch.device("cpu") if tensor is None else tensor.device
    there = home if device is None else resolve(device)
    flags = {module: module.training for module in model.modules()}
    try:
        model.to(there)
        yield there
    finally:
        model.to(home)
        for module, training in flags.items():
            module.training = training


def require_changeable(model: nn.Module) -> None:
    """Refuse a model that was made in inference mode: its tensors can be read, but not trained in place.

    Raises:
        TrainingError: it names the first such tensor.
    """
    named = (*model.named_parameters(), *model.named_buffers())
    if name := next((name for name, tensor in named if tensor.is_inference()), None):
        raise TrainingError(
            f"`{name}` of the model was made in torch.inference_mode and cannot be trained; train a copy that is made "
            "outside of it: copy.deepcopy(model)"
        )


@contextmanager
def training_only(model: nn.Module, parameters: Iterable[nn.Parameter] | None) -> Iterator[list[nn.Parameter]]:
    """Freeze all but `parameters`; put `requires_grad` back and leave no gradient behind.

    Raises:
        TrainingError: there is none, one of them is not the model's, or the model was made in inference mode.
    """
    require_changeable(model)
    own = list(model.parameters())
    flags = [p.requires_grad for p in own]
    chosen = [p for p in own if p.requires_grad] if parameters is None else list(parameters)
    wanted = {id(p) for p in chosen}
    if not wanted <= {id(p) for p in own}:
        raise TrainingError("`parameters` holds some that are not of this model; take them from the copy")
    if not chosen:
        raise TrainingError(
            "nothing to train: no parameter is given, or none requires gradients; call model.requires_grad_(True)"
        )
    try:
        for parameter in own:
            parameter.requires_grad_(id(parameter) in wanted)
        yield chosen
    finally:
        for parameter, flag in zip(own, flags, strict=True):
            parameter.grad = None
            parameter.requires_grad_(flag)
