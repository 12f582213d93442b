"""State as bytes: it comes back bit for bit, or is refused; what is read runs no code and takes no more memory."""

import hashlib
import json
import math
import pickle
from typing import Any

import pytest
import torch

from fxsurgery.errors import RunError, TrainingError
from fxsurgery.training.encoding import MAX_DEPTH, checksum, decode, encode
from nonempty import nonempty

STATE = {
    "step": 3,
    "tensors": {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(2), "none": torch.zeros(0, 4)},
    "optimizer": {"state": {0: {"momentum": torch.full((2, 3), 0.1)}}, 1: None, (2, "a"): True},
    "random": ((3, (1, 2**40), None), [1.5, -0.0, math.inf], "text \u00e9"),
}


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return type(one) is type(other) and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and repr(one) == repr(other)


def crafted(plain: object, content: bytes = b"") -> bytes:
    """Bytes with a right checksum that `encode` would not give."""
    body = (plain if isinstance(plain, bytes) else json.dumps(plain).encode()) + b"\n" + content
    return b"fxsurgery state 1 " + hashlib.sha256(body).hexdigest().encode() + b"\n" + body


def test_everything_comes_back_as_it_was():
    assert same(decode(encode(STATE), "it"), STATE)


@pytest.mark.parametrize(
    "dtype",
    [torch.bool, torch.int8, torch.int64, torch.uint16, torch.float16, torch.bfloat16, torch.float64, torch.complex64],
    ids=str,
)
def test_tensors_of_any_dtype_and_layout_come_back_with_their_strides(dtype: torch.dtype):
    image = torch.randn(2, 3, 4, 5)
    layouts = [image.contiguous(memory_format=torch.channels_last), image.permute(3, 1, 0, 2), torch.randn(5, 1, 4, 4)]
    layouts += [torch.randn(5, 1, 4, 4).contiguous(memory_format=torch.channels_last), torch.tensor(3.5)]
    given = {str(i): tensor.to(dtype) for i, tensor in enumerate(layouts)}
    found = decode(encode(given), "it")
    assert same(found, given)
    assert all(tensor.data_ptr() % 64 == 0 for tensor in nonempty(found.values()))


def test_a_tensor_that_shares_memory_within_itself_comes_back_whole():
    given = torch.arange(3.0).expand(4, 3)
    assert torch.equal(decode(encode({"x": given, "y": torch.eye(6)[::2, ::2]}), "it")["x"], given)


def test_no_changed_bit_goes_unseen():
    whole = encode(STATE)
    for at in nonempty(range(len(whole))):
        changed = bytearray(whole)
        changed[at] ^= 1 << at % 8
        with pytest.raises(RunError, match=r"^it is damaged: "):
            decode(bytes(changed), "it")
    for length in nonempty(range(len(whole))):
        with pytest.raises(RunError, match=r"^it is damaged: "):
            decode(whole[:length], "it")
    with pytest.raises(RunError, match="checksum"):
        decode(whole + b"\0", "it")


def test_the_checksum_is_that_of_the_content():
    assert checksum(encode(STATE)) == checksum(encode(STATE))
    assert checksum(encode({**STATE, "step": 4})) != checksum(encode(STATE))
    assert checksum(encode(STATE)).encode() in encode(STATE)[:83]


FLOATS = ["float32", [2], [1]]


@pytest.mark.parametrize(
    ("plain", "content", "why"),
    [
        ({"tensors": [], "tree": [1]}, b"", "no dict"),
        ({"tensors": []}, b"", "other keys"),
        ({"tensors": [], "tree": {"dict": []}, "more": 1}, b"", "other keys"),
        (b'{"tensors": [], "tree": {"dict": []}, "tree": {"dict": []}}', b"", "stands twice"),
        ([], b"", "other keys"),
        ({"tensors": {}, "tree": {"dict": []}}, b"", "no list"),
        ({"tensors": [FLOATS], "tree": {"dict": [["a", {"tensor": 0}]]}}, b"\0" * 4, "take 8 bytes, and it has 4"),
        ({"tensors": [FLOATS], "tree": {"dict": [["a", {"tensor": 0}]]}}, b"\0" * 12, "take 8 bytes, and it has 12"),
        ({"tensors": [FLOATS], "tree": {"dict": []}}, b"\0" * 8, "nowhere in the tree"),
        ({"tensors": [FLOATS], "tree": {"dict": [["a", {"tensor": 1}]]}}, b"\0" * 8, "not stand in order"),
        ({"tensors": [FLOATS], "tree": {"dict": [[1, {"tensor": 0}], [2, {"tensor": 0}]]}}, b"\0" * 8, "in order"),
        ({"tensors": [], "tree": {"dict": [["a", {"tensor": None}]]}}, b"", "not stand in order"),
        ({"tensors": [["float32", [2**40, 2**40], [0, 0]]], "tree": {"dict": []}}, b"", "gaps, or overlap"),
        ({"tensors": [["float32", [2, 2], [4, 1]]], "tree": {"dict": []}}, b"\0" * 16, "gaps, or overlap"),
        ({"tensors": [["float32", [2**29, 2**29], [2**29, 1]]], "tree": {"dict": []}}, b"", "bytes, and it has 0"),
        ({"tensors": [["float32", [2**40, 2**40, 0], [0, 0, 0]]], "tree": {"dict": []}}, b"", "no size that a tensor"),
        ({"tensors": [["float32", [1], [2**63]]], "tree": {"dict": []}}, b"\0" * 4, "no shape and strides"),
        ({"tensors": [["float32", [1] * 65, [1] * 65]], "tree": {"dict": []}}, b"\0" * 4, "no shape and strides"),
        ({"tensors": [["float32", [-1], [1]]], "tree": {"dict": []}}, b"", "no shape and strides"),
        ({"tensors": [["float32", [True], [1]]], "tree": {"dict": []}}, b"", "no shape and strides"),
        ({"tensors": [["qint8", [1], [1]]], "tree": {"dict": []}}, b"\0", "unknown kind"),
        ({"tensors": [["load", [1], [1]]], "tree": {"dict": []}}, b"\0", "unknown kind"),
        ({"tensors": [[["float32"], [1], [1]]], "tree": {"dict": []}}, b"\0", "unknown kind"),
        ({"tensors": [], "tree": {"dict": [["a", 1], ["a", 2]]}}, b"", "stands twice"),
        ({"tensors": [], "tree": {"dict": [[[1], 2]]}}, b"", "no plain value"),
        ({"tensors": [], "tree": {"dict": [[{"tuple": [[]]}, 2]]}}, b"", "no plain value"),
        ({"tensors": [], "tree": {"dict": ["ab"]}}, b"", "not made of pairs"),
        ({"tensors": [], "tree": {"dict": [["a", {}]]}}, b"", "has not one key"),
        ({"tensors": [], "tree": {"dict": [["a", {"object": []}]]}}, b"", "unknown 'object'"),
        (b'{"tensors": [], "tree": ' + b"[" * 10**5, b"", "deeper"),
        (pickle.dumps({"a": 1}), b"", ""),
    ],
)
def test_what_was_never_written_here_is_refused(plain: object, content: bytes, why: str):
    with pytest.raises(RunError, match=f"^it is damaged: .*{why}"):
        decode(crafted(plain, content), "it")


def test_what_cannot_be_read_back_is_not_written():
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    assert decode(encode({"deep": deep}), "it") == {"deep": deep}
    with pytest.raises(TrainingError, match=f"nests deeper than {MAX_DEPTH}"):
        encode({"deep": [deep]})
    with pytest.raises(TrainingError, match=r"state\['a'\]\[0\] is a function"):
        encode({"a": [lambda: None]})
    with pytest.raises(TrainingError, match="sparse_coo; only dense ones"):
        encode({"a": torch.eye(3).to_sparse()})
    with pytest.raises(TrainingError, match="on meta"):
        encode({"a": torch.empty(3, device="meta")})
