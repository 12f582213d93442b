"""Load the weights of a model from a file of torch or safetensors; no code in the file is run."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from fxsurgery.errors import SourceError, reason_of
from fxsurgery.files import NO_TENSORS

_COLOR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 300
"""Number of characters of an error of torch that a message quotes."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the state dict in a file into a model.

    Raises:
        SourceError: the file cannot be read, holds something else, or does not fit the model.
    """
    try:
        if path.suffix == ".safetensors":
            safetensors.torch.load_model(model, path)
            return
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise SourceError(
            f"--weights: cannot read {path}: {error.strerror or error}; name a file that can be read"
        ) from error
    except (*NO_TENSORS, safetensors.SafetensorError) as error:
        raise SourceError(f"--weights: {path} does not load: {_why(path, error)}") from error
    try:
        model.load_state_dict(_state(found, path))
    except (RuntimeError, TypeError) as error:
        raise SourceError(
            f"--weights: {path} does not fit the model: {_one_line(reason_of(error))}; give weights of this model"
        ) from error


def _state(found: Any, path: Path) -> Any:  # noqa: ANN401 -- whatever the file holds
    """Return the state dict in a checkpoint.

    Raises:
        SourceError: it is in an entry of another name.
    """
    if isinstance(found, Mapping) and "state_dict" in found:
        return found["state_dict"]
    inner = [key for key, value in found.items() if _is_state(value)] if isinstance(found, Mapping) else []
    if not inner or any(isinstance(value, Tensor) for value in found.values()):
        return found
    raise SourceError(
        f"--weights: {path} holds a checkpoint whose weights are nested under {' and '.join(map(repr, inner))}; save "
        f"that entry as a file of its own: torch.save(torch.load({str(path)!r})[{inner[0]!r}], 'weights.pt')"
    )


def _is_state(value: object) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(x, Tensor) for x in value.values())


def _why(path: Path, error: Exception) -> str:
    """Return why a file holds no weights, and what to do."""
    try:
        classes = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except (OSError, *NO_TENSORS):
        classes = []
    if not classes:
        return f"{_one_line(reason_of(error))}; give a state dict that torch.save or safetensors wrote"
    return (
        f"it holds {', '.join(classes[:2])}, perhaps a whole pickled model, and not only tensors; save its weights "
        "alone: torch.save(model.state_dict(), 'weights.pt')"
    )


def _one_line(text: str) -> str:
    return " ".join(_COLOR.sub("", text).split())[:_LONGEST]
