"""Checksums and digests of tensors: what was written past the version counter shows."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fxsurgery import tensor_state
from fxsurgery.tensor_state import digest, state_of

SHAPES = [(), (3,), (64, 65), (300, 257)]
"""From a scalar to more bytes than are summed up one by one."""

WRITES: dict[str, Callable[[Tensor], object]] = {
    "in place": lambda t: t.add_(1.0),
    "through data": lambda t: t.data.mul_(-2.0),
    "through NumPy": lambda t: t.numpy().reshape(-1).__setitem__(-1, 7.5),
    "other data": lambda t: setattr(t, "data", torch.full_like(t, 3.0)),
}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("write", WRITES)
def test_every_write_changes_state_and_digest(write: str, shape: tuple[int, ...]):
    tensor = torch.linspace(1, 2, torch.Size(shape).numel()).reshape(shape)
    state, first = state_of(tensor), digest(tensor)
    assert (state_of(tensor), digest(tensor)) == (state, first)
    WRITES[write](tensor)
    assert state_of(tensor) != state
    assert digest(tensor) != first
    assert digest(tensor) == digest(tensor.clone())


def test_a_fused_optimizer_is_seen_though_it_counts_no_version():
    weight = torch.nn.Parameter(torch.ones(50, 100))
    weight.grad = torch.ones_like(weight)
    optimizer, state, first = torch.optim.AdamW([weight], fused=True), state_of(weight), digest(weight)
    optimizer.step()
    assert state_of(weight) != state
    assert digest(weight) != first


def test_rows_that_change_places_change_the_checksum():
    tensor = torch.arange(300 * 257, dtype=torch.float32).reshape(300, 257)
    swapped = tensor.clone()
    swapped[[0, 1]] = tensor[[1, 0]]
    states = state_of(tensor), state_of(swapped.clone())
    assert None not in states
    assert states[0] != states[1]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.ones(20_001, dtype=torch.bfloat16)[1:],
        torch.ones(70, 90).t(),
        torch.ones(40, 50, dtype=torch.complex64).conj(),
        torch.ones(5, dtype=torch.bool),
        torch.empty(0),
    ],
    ids=["odd offset", "not contiguous", "conjugate", "truth values", "empty"],
)
def test_any_plain_tensor_has_a_state(tensor: Tensor):
    assert state_of(tensor) is not None
    assert digest(tensor) == digest(tensor.clone())


def test_shape_and_type_are_part_of_both():
    ones = torch.zeros(4, 2)
    assert digest(ones) != digest(ones.reshape(2, 4))
    assert state_of(ones) != state_of(ones.int())


def test_what_has_no_bytes_has_no_state():
    assert state_of(torch.ones(3).to_sparse()) is None
    assert state_of(torch.empty(3, device="meta")) is None


def test_a_tensor_of_inference_mode_has_a_state():
    with torch.inference_mode():
        tensor = torch.ones(3)
    assert state_of(tensor) is not None


def test_a_digest_is_worked_out_once(monkeypatch: pytest.MonkeyPatch):
    worked_out, plain = list[int](), tensor_state.hashlib.sha256
    monkeypatch.setattr(tensor_state.hashlib, "sha256", lambda *given: worked_out.append(1) or plain(*given))
    tensor = torch.ones(10, 10)
    assert digest(tensor) == digest(tensor)
    assert len(worked_out) == 1
    tensor.data.zero_()
    digest(tensor)
    assert len(worked_out) == 2
