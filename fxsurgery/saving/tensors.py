"""Tensors in a safetensors file: each is stored once, whatever its number of names, with its memory format."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors.torch import load_file, save
from torch import Tensor

from fxsurgery.errors import RunError, SavingError, reason_of
from fxsurgery.files import write_whole, writing
from fxsurgery.strict_json import parse_json, require_regular

_STRIDED = {4: torch.channels_last, 5: torch.channels_last_3d}
_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1, "I16": 2, "U16": 2,
    "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip
"""Bytes per element of each dtype."""
MAX_HEADER_BYTES = 10**8
"""Maximum header size in bytes, as specified by the format."""


def named_state(module: torch.nn.Module) -> list[tuple[str, Tensor]]:
    """Return every parameter and buffer under all its names, including those outside the `state_dict`."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def first_names(state: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Map each name of a tensor to the first name of the same tensor."""
    first = dict[int, str]()
    return {name: first.setdefault(id(tensor), name) for name, tensor in state}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write distinct tensors to a file.

    Raises:
        SavingError: a tensor has a type or layout that the format does not support.
        RunError: the file cannot be written.
    """
    layouts = {name: "channels_last" for name, t in tensors.items() if _is_channels_last(t)}
    plain = {name: _plain(name, tensor) for name, tensor in tensors.items()}
    try:
        content = _in_order(save(plain, {"format": "pt", "layouts": json.dumps(layouts)}))
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise SavingError(
            f"the tensors cannot be saved: {reason_of(error)}; copy the model to the CPU first"
        ) from error
    write_whole(path, content)


def _in_order(content: bytes) -> bytes:
    """Return the file content with sorted metadata, which safetensors writes in random order."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(size) + content[8 + size :]


def read_header(path: Path) -> dict[str, torch.Size]:
    """Return the shape of each tensor in a file, without reading the tensors.

    Raises:
        RunError: the file is missing, not a regular file, or its size does not match its header.
    """
    with writing(path):
        require_regular(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > MAX_HEADER_BYTES:
                raise RunError(
                    f"{path} is damaged: its header has {length:,} bytes; restore an intact copy, or save it again"
                )
            header = file.read(length)
            available = path.stat().st_size - 8 - length
    plain = parse_json(header, where=str(path), max_depth=8)
    entries = {n: e for n, e in plain.items() if n != "__metadata__"} if isinstance(plain, dict) else None
    try:
        found = _HEADER.validate_python(entries)
    except ValidationError as error:
        raise RunError(
            f"{path} is damaged: its header is invalid at {error.errors()[0]['loc']}; restore an intact copy, "
            "or save it again"
        ) from error
    position = 0
    for name, entry in sorted(found.items(), key=lambda item: item[1].data_offsets):
        position = entry.end(name, path, position)
    if position != available:
        raise RunError(
            f"{path} is damaged: its tensors need {position:,} bytes, but it has {available:,}; restore an intact "
            "copy, or save it again"
        )
    return {name: torch.Size(entry.shape) for name, entry in found.items()}


class _Entry(BaseModel):
    """The header entry of a tensor."""

    model_config = ConfigDict(extra="forbid", strict=True)
    dtype: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(max_length=64)]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=2, max_length=2)]

    def end(self, name: str, path: Path, start: int) -> int:
        """Return the end offset of the tensor's bytes, which must begin at `start`.

        Raises:
            RunError: the offsets do not match the shape, or the dtype is unknown.
        """
        if self.dtype not in _BYTES:
            raise RunError(
                f"{path} is damaged: `{name[:60]}` has the unknown dtype {self.dtype[:20]!r}; restore an "
                "intact copy, or save it again"
            )
        stop = start + math.prod(self.shape) * _BYTES[self.dtype]
        if self.data_offsets != [start, stop]:
            raise RunError(
                f"{path} is damaged: `{name[:60]}` has shape {self.shape} but offsets {self.data_offsets}; restore an "
                "intact copy, or save it again"
            )
        return stop


_HEADER = TypeAdapter(dict[str, _Entry])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file, on the CPU.

    Raises:
        RunError: the file is missing or damaged.
    """
    sizes = read_header(path)
    with writing(path):
        try:
            # On their own memory with torch's alignment: the rounding of kernels depends on alignment.
            found = {name: tensor.clone() for name, tensor in load_file(path).items()}
            with safetensors.safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get("layouts", "{}")
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise RunError(
                f"{path} is damaged: {reason_of(error)}; restore an intact copy, or save it again"
            ) from error
    layouts = parse_json(text.encode("utf-8", "replace"), where=str(path), max_depth=2)
    if not isinstance(layouts, dict) or any(form != "channels_last" for form in layouts.values()):
        raise RunError(f"{path} is damaged: its layouts are invalid; restore an intact copy, or save it again")
    for name in layouts:
        if name not in sizes or found[name].dim() not in _STRIDED:
            raise RunError(
                f"{path} is damaged: `{name[:60]}` cannot be channels last; restore an intact copy, or save it again"
            )
        found[name] = found[name].contiguous(memory_format=_STRIDED[found[name].dim()])
    return found


def _plain(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_meta or tensor.is_complex():
        kind = "quantized" if tensor.is_quantized else str(tensor.layout if not tensor.is_complex() else tensor.dtype)
        raise SavingError(
            f"the tensor `{name}` cannot be saved because it is {'meta' if tensor.is_meta else kind}; keep it dense, "
            "real and on a device with data"
        )
    # A copy, since the format rejects tensors that share memory.
    return tensor.detach().cpu().contiguous().clone()


def _is_channels_last(tensor: Tensor) -> bool:
    return (
        tensor.dim() in _STRIDED
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=_STRIDED[tensor.dim()])
    )
