"""Tensors in a safetensors file: each once, however many names it has, with the layout it had in memory."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from fxsurgery.errors import RunError, SavingError
from fxsurgery.files import write_whole, writing

_STRIDED = {4: torch.channels_last, 5: torch.channels_last_3d}


def named_state(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """Every parameter and buffer under all its names, also what is in no `state_dict`."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def first_names(state: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """For each name of a tensor the first one that it has."""
    first = dict[int, str]()
    return {name: first.setdefault(id(tensor), name) for name, tensor in state}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors that differ from one another.

    Raises:
        SavingError: one is of a kind that the format does not have.
        RunError: the file cannot be written.
    """
    layouts = {name: "channels_last" for name, t in tensors.items() if _is_channels_last(t)}
    plain = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    try:
        content = save(plain, {"format": "pt", "layouts": json.dumps(layouts)})
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise SavingError(f"the tensors cannot be written: {error}") from error
    write_whole(path, content)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Raises:
        RunError: the file is not there, or damaged.
    """
    with writing(path):
        try:
            # On memory of their own, aligned as torch does it: kernels round by how memory is aligned.
            found = {name: tensor.clone() for name, tensor in load_file(path).items()}
            with safetensors.safe_open(path, "pt") as file:
                layouts: Any = json.loads((file.metadata() or {}).get("layouts", "{}"))
        except (safetensors.SafetensorError, ValueError) as error:
            raise RunError(f"{path} is damaged: {error}") from error
    for name in layouts if isinstance(layouts, dict) else ():
        if name in found and found[name].dim() in _STRIDED:
            found[name] = found[name].contiguous(memory_format=_STRIDED[found[name].dim()])
    return found


def _plain(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_meta or tensor.is_complex():
        kind = "quantized" if tensor.is_quantized else str(tensor.layout if not tensor.is_complex() else tensor.dtype)
        raise SavingError(f"the tensor `{name}` cannot be written: it is {'meta' if tensor.is_meta else kind}")
    # A copy where memory is shared with what is beside it, which the format refuses.
    return tensor.detach().cpu().contiguous().clone()


def _is_channels_last(tensor: Tensor) -> bool:
    return (
        tensor.dim() in _STRIDED
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=_STRIDED[tensor.dim()])
    )
