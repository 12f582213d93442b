"""Identity of the content of a tensor: a fast checksum, and a cached SHA-256.

The version counter of a tensor does not show every write: fused optimizers, batch norms, `.data` and NumPy bypass it.
So a tensor is identified by its *checksum*: CRC-32 of its bytes, or, for large tensors, of the sums (modulo 2^64) of
512 bytes each, which takes as long as reading them.
"""

import hashlib
import zlib
from collections.abc import MutableMapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

_SMALL = 2**14
"""Number of bytes up to which every byte enters the checksum by itself."""
_ROW = 64
"""Number of eight-byte integers that are summed."""
_WORD = 8
"""Size of such an integer in bytes."""


@dataclass(frozen=True, slots=True)
class TensorState:
    """State of a tensor; equal for a tensor that was not modified in between."""

    kind: tuple[torch.dtype, tuple[int, ...], torch.device]
    version: int
    checksum: int


def state_of(tensor: Tensor) -> TensorState | None:
    """Return the current state of a tensor; `None` if its bytes cannot be read (sparse, quantized, meta)."""
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_meta:
        return None
    version = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 -- there is no public way
    return TensorState((tensor.dtype, tuple(tensor.shape), tensor.device), version, _checksum(tensor.detach()))


def digest(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's dtype, shape and bytes; it is cached until the tensor changes."""
    state, known = state_of(tensor), _DIGESTS.get(tensor)
    if known is not None and state is not None and known[0] == state:
        return known[1]
    found = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    found.update(_buffer(_bytes(tensor.detach())))
    if state is not None:
        _DIGESTS[tensor] = state, found.hexdigest()
    return found.hexdigest()


_DIGESTS: MutableMapping[Tensor, tuple[TensorState, str]] = WeakTensorKeyDictionary()
"""Cached digest of each tensor, with the state for which it is valid."""


def _checksum(tensor: Tensor) -> int:
    flat = _bytes(tensor)
    if flat.numel() <= _SMALL:
        return zlib.crc32(_buffer(flat))
    if flat.storage_offset() % _WORD:
        flat = flat.clone()
    whole = flat.numel() // (_WORD * _ROW) * (_WORD * _ROW)
    sums = flat[:whole].view(torch.int64).view(-1, _ROW).sum(1)
    return zlib.crc32(_buffer(flat[whole:]), zlib.crc32(_buffer(sums)))


def _buffer(tensor: Tensor) -> memoryview:
    return tensor.cpu().numpy().data


def _bytes(tensor: Tensor) -> Tensor:
    """Return the entries as bytes, (bytes,)."""
    return tensor.resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
