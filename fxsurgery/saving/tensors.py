"""Tensors in a safetensors file: each once, however many names it has, with the layout it had in memory."""

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
"""Of each type, the bytes of a number."""
LARGEST_HEADER = 10**8
"""Bytes, as the format has it."""


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
        content = _in_order(save(plain, {"format": "pt", "layouts": json.dumps(layouts)}))
    except (KeyError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
        raise SavingError(
            f"the tensors cannot be written: {reason_of(error)}; copy the model to the CPU first"
        ) from error
    write_whole(path, content)


def _in_order(content: bytes) -> bytes:
    """The same file with its metadata in order: safetensors writes them in another order each time."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    return content[:8] + text.ljust(size) + content[8 + size :]


def read_header(path: Path) -> dict[str, torch.Size]:
    """The size of each tensor of a file, none of which is read.

    Raises:
        RunError: the file is not there, or is no regular file of tensors that are as large as it says.
    """
    with writing(path):
        require_regular(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > LARGEST_HEADER:
                raise RunError(
                    f"{path} is damaged: its header would be {length:,} bytes; restore an intact copy, or save it again"
                )
            header = file.read(length)
            room = path.stat().st_size - 8 - length
    plain = parse_json(header, where=str(path), max_depth=8)
    entries = {n: e for n, e in plain.items() if n != "__metadata__"} if isinstance(plain, dict) else None
    try:
        found = _HEADER.validate_python(entries)
    except ValidationError as error:
        raise RunError(
            f"{path} is damaged: its header is none of tensors: {error.errors()[0]['loc']}; restore an intact copy, "
            "or save it again"
        ) from error
    place = 0
    for name, entry in sorted(found.items(), key=lambda item: item[1].data_offsets):
        place = entry.end(name, path, place)
    if place != room:
        raise RunError(
            f"{path} is damaged: its tensors take {place:,} bytes, and there are {room:,}; restore an intact copy, or "
            "save it again"
        )
    return {name: torch.Size(entry.shape) for name, entry in found.items()}


class _Entry(BaseModel):
    """What a header says of a tensor."""

    model_config = ConfigDict(extra="forbid", strict=True)
    dtype: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(max_length=64)]
    data_offsets: Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=2, max_length=2)]

    def end(self, name: str, path: Path, start: int) -> int:
        """Where its bytes end, which begin at `start`.

        Raises:
            RunError: it is somewhere else, or of another size.
        """
        if self.dtype not in _BYTES:
            raise RunError(
                f"{path} is damaged: `{name[:60]}` is of no type that torch has ({self.dtype[:20]!r}); restore an "
                "intact copy, or save it again"
            )
        stop = start + math.prod(self.shape) * _BYTES[self.dtype]
        if self.data_offsets != [start, stop]:
            raise RunError(
                f"{path} is damaged: `{name[:60]}` is {self.shape}, and its bytes are {self.data_offsets}; restore an "
                "intact copy, or save it again"
            )
        return stop


_HEADER = TypeAdapter(dict[str, _Entry])


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU.

    Raises:
        RunError: the file is not there, or damaged.
    """
    sizes = read_header(path)
    with writing(path):
        try:
            # On memory of their own, aligned as torch does it: kernels round by how memory is aligned.
            found = {name: tensor.clone() for name, tensor in load_file(path).items()}
            with safetensors.safe_open(path, "pt") as file:
                text = (file.metadata() or {}).get("layouts", "{}")
        except (safetensors.SafetensorError, ValueError, KeyError, RuntimeError) as error:
            raise RunError(
                f"{path} is damaged: {reason_of(error)}; restore an intact copy, or save it again"
            ) from error
    layouts = parse_json(text.encode("utf-8", "replace"), where=str(path), max_depth=2)
    if not isinstance(layouts, dict) or any(form != "channels_last" for form in layouts.values()):
        raise RunError(f"{path} is damaged: it has no layouts of tensors; restore an intact copy, or save it again")
    for name in layouts:
        if name not in sizes or found[name].dim() not in _STRIDED:
            raise RunError(
                f"{path} is damaged: no image `{name[:60]}` is there to be channels last; restore an intact copy, or "
                "save it again"
            )
        found[name] = found[name].contiguous(memory_format=_STRIDED[found[name].dim()])
    return found


def _plain(name: str, tensor: Tensor) -> Tensor:
    if tensor.is_quantized or tensor.layout is not torch.strided or tensor.is_meta or tensor.is_complex():
        kind = "quantized" if tensor.is_quantized else str(tensor.layout if not tensor.is_complex() else tensor.dtype)
        raise SavingError(
            f"the tensor `{name}` cannot be written: it is {'meta' if tensor.is_meta else kind}; keep it dense, and "
            "on a device that holds numbers"
        )
    # A copy where memory is shared with what is beside it, which the format refuses.
    return tensor.detach().cpu().contiguous().clone()


def _is_channels_last(tensor: Tensor) -> bool:
    return (
        tensor.dim() in _STRIDED
        and not tensor.is_contiguous()
        and tensor.is_contiguous(memory_format=_STRIDED[tensor.dim()])
    )
