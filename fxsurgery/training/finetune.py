"""Fine-tuning by a function of the user's own: called once, and checked."""

import inspect
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from fxsurgery.argument_names import keyword
from fxsurgery.errors import SurgeryError, TrainingError, reason_of, typed_reason
from fxsurgery.program import Program
from fxsurgery.seeding import seeded
from fxsurgery.training.device import Device, resolve
from fxsurgery.training.finite import not_finite
from fxsurgery.training.snapshot import put_back, tensors_of

Finetune: TypeAlias = Callable[[Any], Any]
"""`finetune(model)`: trains the model in place, or returns it."""


def name_of(finetune: Finetune) -> str:
    """Return the name of a fine-tune function in messages."""
    return str(getattr(finetune, "__name__", type(finetune).__name__))


def require_takes_model(finetune: object) -> None:
    """Refuse what cannot be called with a model alone.

    Raises:
        SurgeryError: it is not a function, or takes other arguments.
    """
    if not callable(finetune) or isinstance(finetune, type):
        raise SurgeryError(
            f"{keyword('finetune')} must be a function of the model, not {type(finetune).__name__}; give "
            "finetune(model), which trains it in place or returns it"
        ).at("finetune")
    try:
        signature = inspect.signature(finetune)
    except ValueError:  # a built-in one shows none
        return
    try:
        signature.bind(nn.Identity())
    except TypeError as error:
        raise SurgeryError(
            f"{keyword('finetune')} {name_of(finetune)}{signature} cannot be called with the model alone: "
            f"{reason_of(error)}; give its other arguments with functools.partial"
        ).at("finetune") from error


def fine_tuned_by(finetune: Finetune, program: Program, seed: int, device: Device) -> fx.GraphModule:
    """Return a copy of a program's module with the weights that the user's function trained.

    Args:
        finetune: gets a copy of its own, in train mode, on `device`.
        program: left as it is.
        seed: what the function draws at random follows from it.
        device: device to train on.

    Raises:
        TrainingError: the function raises, changes layers or shapes, or leaves weights that are not finite.
    """
    there, model, name = resolve(device), program.trainable_copy(), name_of(finetune)
    layers = _layers(model)
    model.to(there).train()
    with seeded(seed, there), torch.enable_grad():
        try:
            given: object = finetune(model)
        except Exception as error:
            raise TrainingError(
                f"{keyword('finetune')} {name} raised {typed_reason(error)}; correct the function"
            ) from error
    ended = model if given is None else given
    if not isinstance(ended, nn.Module):
        raise TrainingError(
            f"{keyword('finetune')} {name} returned a {type(ended).__name__}; return the model, or nothing"
        )
    tensors = tensors_of(ended)
    own = program.trainable_copy()
    if changed := _changes(layers, _layers(ended), tensors_of(own), tensors):
        raise TrainingError(
            f"{keyword('finetune')} {name} changed the structure of the model: {changed}; train its weights only, and "
            "return the module that it got"
        )
    put_back(own, tensors)
    if wrong := not_finite(own):
        raise TrainingError(
            f"{keyword('finetune')} {name} left values that are not finite in {', '.join(wrong[:3])}; lower its "
            "learning rate"
        )
    return own


def _layers(model: nn.Module) -> dict[str, str]:
    """Return the type of each layer by name."""
    return {name: type(module).__qualname__ for name, module in model.named_modules() if name}


def _changes(layers: dict[str, str], now: dict[str, str], tensors: dict[str, Tensor], ended: dict[str, Tensor]) -> str:
    """Return the first change of layers or tensors in words; empty if there is none."""
    for name in sorted(layers.keys() | now.keys()):
        if layers.get(name) != now.get(name):
            return f"layer `{name}` was {layers.get(name, 'not there')}, is {now.get(name, 'not there')}"
    for name in sorted(tensors.keys() | ended.keys()):
        before, after = (_form(x.get(name)) for x in (tensors, ended))
        if before != after:
            return f"`{name}` was {before}, is {after}"
    return ""


def _form(tensor: Tensor | None) -> str:
    return "not there" if tensor is None else f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
