"""Encode plain data with tensors as bytes, and decode them bit for bit. Reading runs no code and detects changed bits.

    fxsurgery state 1 SHA256        of everything below
    {"tensors": [...], "tree": ...} one line of JSON
    the bytes of the tensors, one after the other

In the tree, numbers, strings, `None` and lists represent themselves; the other nodes are `{"tuple": [...]}`,
`{"dict": [[key, value], ...]}` and `{"tensor": index}`. A tensor is `[dtype, shape, strides]`; the size of the file
must match these, so a tensor never takes more memory than the file.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxsurgery.errors import RunError, TrainingError, reason_of
from fxsurgery.strict_json import parse_json

MAX_DEPTH = 32
"""Maximum nesting depth of dicts, lists and tuples."""
_JSON_DEPTH = 3 * MAX_DEPTH + 8
_MAX_DIMS, _MAX_SIZE = 64, 2**60
_HEAD = re.compile(rb"fxsurgery state 1 ([0-9a-f]{64})\n")
_PLAIN_DTYPE = re.compile(r"torch\.(bool|u?int(8|16|32|64)|b?float(16|32|64)|float8_\w+|complex(32|64|128))")
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype) and _PLAIN_DTYPE.fullmatch(str(dtype))
}


def encode(content: Mapping[str, Any]) -> bytes:
    """Encode plain data: dicts, lists, tuples, strings, numbers, `None` and tensors.

    Raises:
        TrainingError: the data hold another type, or are nested too deeply.

    Example:
        >>> decode(encode({"step": 3, "rates": (0.1, None)}), "the snapshot")
        {'step': 3, 'rates': (0.1, None)}
    """
    writer = _Writer()
    tree = writer.tree(content, "state", 0)
    head = json.dumps({"tensors": writer.described, "tree": tree}, separators=(",", ":")).encode() + b"\n"
    body = b"".join([head, *writer.parts])
    return b"fxsurgery state 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def checksum(encoded: bytes) -> str:
    """Return the SHA-256 checksum in encoded data."""
    return encoded[18:82].decode()


def decode(encoded: bytes, where: str) -> dict[str, Any]:
    """Decode the bytes of `encode`; tensors are on the CPU, each in its own memory.

    Args:
        encoded: the bytes.
        where: name of the bytes in messages.

    Raises:
        RunError: the bytes were changed, or do not come from `encode`.
    """
    head = _HEAD.match(encoded)
    if head is None:
        raise _damaged(where, "it does not begin as a state of this version")
    if hashlib.sha256(memoryview(encoded)[head.end() :]).hexdigest().encode() != head[1]:
        raise _damaged(where, "its checksum does not match")
    end = encoded.find(b"\n", head.end())
    if end < 0:
        raise _damaged(where, "it ends before its tensors")
    plain = parse_json(encoded[head.end() : end], where=where, max_depth=_JSON_DEPTH, allow_nan=True)
    try:
        return _Reader(plain, memoryview(encoded)[end + 1 :]).read()
    except ValueError as error:
        raise _damaged(where, reason_of(error)) from error


def _damaged(where: str, why: str) -> RunError:
    return RunError(f"{where} is damaged: {why}; restore an intact copy")


@dataclass(eq=False)
class _Writer:
    """Separates the tensors from a tree."""

    described: list[tuple[str, list[int], list[int]]] = field(default_factory=list)
    parts: list[bytes] = field(default_factory=list)

    def tree(self, value: Any, what: str, depth: int) -> Any:  # noqa: ANN401
        if value is None or type(value) in {bool, int, float, str}:
            return value
        if depth > MAX_DEPTH:
            raise TrainingError(f"no snapshot can be taken: {what} nests deeper than {MAX_DEPTH}; keep it flatter")
        if isinstance(value, Tensor):
            return {"tensor": self._taken(value, what)}
        if isinstance(value, Mapping):
            pairs = (
                (self.tree(k, what, depth + 1), self.tree(v, f"{what}[{k!r}]", depth + 1)) for k, v in value.items()
            )
            return {"dict": list(pairs)}
        if isinstance(value, list | tuple):
            items = [self.tree(v, f"{what}[{i}]", depth + 1) for i, v in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        raise TrainingError(
            f"no snapshot can be taken: {what} is a {type(value).__name__}, which is no plain data; keep it as "
            "numbers, strings or tensors"
        )

    def _taken(self, tensor: Tensor, what: str) -> int:
        name = str(tensor.dtype).removeprefix("torch.")
        if name not in _DTYPES or tensor.layout is not torch.strided or tensor.is_meta:
            raise TrainingError(
                f"no snapshot can be taken: {what} is a tensor of {tensor.dtype} on {tensor.device}, {tensor.layout}; "
                "only dense ones can be written. Train without run directory, or make it dense"
            )
        whole = tensor.detach().cpu().resolve_conj().resolve_neg()
        if not _is_dense(whole.shape, whole.stride()):
            whole = whole.contiguous()
        self.described.append((name, list(whole.shape), list(whole.stride())))
        flat = whole.permute(_order(whole.shape, whole.stride())).reshape(-1)
        self.parts.append(flat.view(torch.uint8).numpy().tobytes())
        return len(self.described) - 1


@dataclass(eq=False)
class _Reader:
    """Restores the tensors of a tree; raises `ValueError` for anything that `encode` does not write."""

    plain: Any
    content: memoryview
    tensors: Iterator[tuple[int, Tensor]] = field(init=False)

    def read(self) -> dict[str, Any]:
        if not isinstance(self.plain, dict) or list(self.plain) != ["tensors", "tree"]:
            raise ValueError("it holds other keys than `tensors` and `tree`")
        described = self.plain["tensors"]
        if type(described) is not list:
            raise ValueError("`tensors` is no list")
        sizes = [_size(one) for one in described]
        if sum(sizes) != len(self.content):
            raise ValueError(f"its tensors take {sum(sizes):,} bytes, and it has {len(self.content):,}")
        self.tensors = enumerate(_tensors(described, sizes, self.content))
        found = self._tree(self.plain["tree"])
        if next(self.tensors, None) is not None:
            raise ValueError("a tensor stands nowhere in the tree")
        if type(found) is not dict:
            raise ValueError("it is no dict")
        return found

    def _tree(self, value: Any) -> Any:  # noqa: ANN401
        if isinstance(value, list):
            return [self._tree(item) for item in value]
        if not isinstance(value, dict):
            return value
        if len(value) != 1:
            raise ValueError("an object of its tree has not one key")
        [(kind, inner)] = value.items()
        if kind == "tensor":
            return self._tensor(inner)
        if kind not in {"tuple", "dict"} or not isinstance(inner, list):
            raise ValueError(f"its tree holds an unknown {kind[:40]!r}")
        return tuple(map(self._tree, inner)) if kind == "tuple" else self._dict(inner)

    def _tensor(self, number: Any) -> Tensor:  # noqa: ANN401
        following, tensor = next(self.tensors, (None, torch.empty(0)))
        if type(number) is not int or number != following:
            raise ValueError("its tensors do not stand in order")
        return tensor

    def _dict(self, pairs: list[Any]) -> dict[Any, Any]:
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
            raise ValueError("a dict of its tree is not made of pairs")
        found = dict[Any, Any]()
        for key, value in pairs:
            name = self._tree(key)
            if not _is_key(name) or name in found:
                raise ValueError(f"the key {str(name)[:40]!r} is no plain value, or stands twice")
            found[name] = self._tree(value)
        return found


def _is_key(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_key, value))
    return value is None or isinstance(value, bool | int | float | str)


def _size(described: Any) -> int:  # noqa: ANN401
    """Return the size of a tensor in bytes."""
    if not isinstance(described, list) or len(described) != 3:
        raise ValueError("a tensor is not told by dtype, shape and strides")
    name, shape, strides = described
    if not isinstance(name, str) or name not in _DTYPES:
        raise ValueError("a tensor is of an unknown kind")
    if not (_is_sizes(shape) and _is_sizes(strides) and len(shape) == len(strides) <= _MAX_DIMS):
        raise ValueError("a tensor has no shape and strides")
    if math.prod(max(size, 1) for size in shape) > _MAX_SIZE or not _is_dense(shape, strides):
        raise ValueError("the strides of a tensor leave gaps, or overlap, or it has no size that a tensor can have")
    return math.prod(shape) * _DTYPES[name].itemsize


def _is_sizes(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, list) and all(type(n) is int and 0 <= n <= _MAX_SIZE for n in value)


def _order(shape: Any, strides: Any) -> list[int]:  # noqa: ANN401
    """Return the dims from the outermost to the innermost in memory."""
    return sorted(range(len(shape)), key=lambda dim: (-strides[dim], shape[dim] > 1))


def _is_dense(shape: Any, strides: Any) -> bool:  # noqa: ANN401
    """Return whether a tensor fills its memory, each element once; dims of size 1 may have any stride."""
    if 0 in shape:
        return True
    step = 1
    for dim in reversed(_order(shape, strides)):
        if shape[dim] != 1:
            if strides[dim] != step:
                return False
            step *= shape[dim]
    return True


def _tensors(described: list[Any], sizes: list[int], content: memoryview) -> Iterator[Tensor]:
    begin = 0
    for (name, shape, strides), size in zip(described, sizes, strict=True):
        # Memory that PyTorch allocates: the alignment affects the rounding of kernels.
        tensor = torch.empty_strided(shape, strides, dtype=_DTYPES[name])
        if size:
            order = _order(shape, strides)
            flat = torch.frombuffer(bytearray(content[begin : begin + size]), dtype=torch.uint8).view(_DTYPES[name])
            tensor.permute(order).copy_(flat.view([shape[dim] for dim in order]))
        begin += size
        yield tensor
