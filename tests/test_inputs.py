"""Example inputs of any structure: the batch, other sizes of it, and where tensors are."""

from collections import UserDict, namedtuple
from dataclasses import dataclass

import pytest
import torch

from fxsurgery.inputs import Inputs, tensors_in
from nonempty import nonempty

ROWS = torch.arange(6.0).reshape(3, 2)
TABLE = torch.eye(4)


def test_only_the_batch_is_resized():
    inputs = Inputs(({"a": [ROWS, 7]}, TABLE), {"mask": ROWS > 2, "how": "mean"})
    one, four = inputs.resized(1), inputs.resized(4)
    assert torch.equal(one.args[0]["a"][0], ROWS[:1])
    assert torch.equal(four.kwargs["mask"], (ROWS > 2)[[0, 1, 2, 0]])
    assert (one.args[0]["a"][1], one.kwargs["how"]) == (7, "mean")
    assert torch.equal(one.args[1], TABLE)
    assert torch.equal(inputs.grown().args[0]["a"][0], ROWS[[0, 1, 2, 0]])


def test_without_a_batch_nothing_is_resized():
    scalar = Inputs((torch.tensor(2.0), "x"))
    assert scalar.batch is None
    assert scalar.resized(5) is scalar


def test_samples_are_joined_and_tables_are_not():
    both = Inputs((ROWS, TABLE)).joined(Inputs((ROWS[:1] + 9, TABLE)))
    assert torch.equal(both.args[0], torch.cat([ROWS, ROWS[:1] + 9]))
    assert torch.equal(both.args[1], TABLE)


@pytest.mark.parametrize("other", [Inputs((ROWS, TABLE)), Inputs((), {"x": ROWS}), Inputs((ROWS[:, :1],))])
def test_what_does_not_fit_is_not_joined(other):
    with pytest.raises(ValueError, match="cannot be joined"):
        Inputs((ROWS,)).joined(other)


def test_the_batch_may_be_another_dim():
    steps = torch.arange(12).reshape(3, 2, 2)
    inputs = Inputs((steps, ROWS[:2], TABLE), batch_dims=(1, 0, None))
    assert (inputs.batch, inputs.batch_dim(steps), inputs.is_batched(inputs.args[2])) == (2, 1, False)
    grown = inputs.grown()
    assert [x.shape for x in grown.tensors] == [(3, 3, 2), (3, 2), (4, 4)]
    assert torch.equal(grown.args[0][:, 2], steps[:, 0])
    assert grown.batch == 3
    one = inputs.rows(1, 2)
    assert torch.equal(one.args[0], steps[:, 1:])
    assert torch.equal(one.args[1], ROWS[1:2])
    both = inputs.joined(inputs)
    assert torch.equal(both.args[0], torch.cat([steps, steps], 1))


def test_offsets_stay_in_order_and_their_rows_stay_whole():
    ids, offsets = torch.arange(10), torch.tensor([0, 3, 4, 8])
    inputs = Inputs((ids, offsets), batch_dims=(None, 0))
    assert inputs.offsets == [False, True]
    assert inputs.grown().args[1].tolist() == [0, 3, 4, 8, 8]
    assert inputs.grown().args[0] is ids
    assert inputs.resized(2).args[1].tolist() == [0, 3]
    assert (inputs.is_resizable, inputs.is_divisible) == (True, False)
    with pytest.raises(ValueError, match="cannot be joined"):
        inputs.joined(inputs)


def test_sorted_lengths_stay_sorted_with_their_rows():
    lengths = torch.tensor([4, 2, 1])
    grown = Inputs((ROWS, lengths)).grown()
    assert grown.args[1].tolist() == [4, 2, 1, 1]
    assert torch.equal(grown.args[0][3], ROWS[2])


def test_lengths_that_count_out_rows_are_not_resized():
    inputs = Inputs((torch.arange(10), torch.tensor([3, 1, 6])), batch_dims=(None, 0))
    assert inputs.batch == 3
    assert inputs.grown() is inputs


def test_class_numbers_beside_rows_are_no_offsets():
    inputs = Inputs((ROWS, torch.tensor([0, 1, 1])))
    assert (inputs.offsets, inputs.is_divisible) == ([False, False], True)


def test_tensors_are_found_in_every_container():
    @dataclass
    class Output:
        logits: object
        loss: object = None

    pair = namedtuple("pair", "left right")  # noqa: PYI024 -- the untyped kind is met too
    value = Output([pair(ROWS, TABLE), UserDict(x=ROWS), {"none": None, 3: TABLE}])
    found = dict(tensors_in(value))
    assert list(found) == [("logits", 0, "left"), ("logits", 0, "right"), ("logits", 1, "x"), ("logits", 2, "3")]
    assert found["logits", 2, "3"] is TABLE


def test_tensors_come_in_the_order_of_the_inputs():
    inputs = Inputs((torch.topk(ROWS, 2), [ROWS]), {"b": TABLE, "a": ROWS})
    found = [x for _, x in tensors_in((inputs.args, inputs.kwargs))]
    assert all(x is y for x, y in nonempty(zip(found, inputs.tensors, strict=True)))
