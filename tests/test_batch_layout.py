"""Where the batch is: as stated, as the target tells, as the outputs tell."""

from functools import partial

import pytest
import torch
from torch import nn

from fxsurgery.batch_layout import (
    as_stated,
    by_position,
    by_running,
    by_target,
    sample_count,
    statement_of,
    target_sizes,
)
from fxsurgery.errors import DataError
from fxsurgery.inputs import Inputs

SEQ, ROWS, TABLE, SCALAR = torch.randn(7, 3, 6), torch.randn(3, 4), torch.eye(5), torch.tensor(2.0)
FLAT, OFFSETS = torch.arange(10), torch.tensor([0, 3, 4, 8])
LABELS = torch.tensor([0, 1, 2])


@pytest.mark.parametrize(
    ("inputs", "statement", "dims"),
    [
        (Inputs((SEQ, ROWS, SCALAR)), 1, (1, 0, None)),
        (Inputs((SEQ, ROWS)), (1, 0), (1, 0)),
        (Inputs((SEQ, ROWS)), [-2, None], (1, None)),
        (Inputs((SEQ, ROWS)), {0: 1}, (1, 0)),
        (Inputs((SEQ, TABLE, ROWS)), {"seq": 1}, (1, None, 0)),
        (Inputs((), {"x": ROWS, "seq": SEQ}), {"seq": 1}, (0, 1)),
        (Inputs(({"x": ROWS, "deep": [SEQ, TABLE]},)), {"deep": [1, None]}, (0, 1, None)),
        (Inputs(((SEQ, ROWS), TABLE)), ((1, 0), None), (1, 0, None)),
        (Inputs((FLAT, OFFSETS)), {"rows": 0, "seq": None}, (None, 0)),
    ],
)
def test_a_statement_by_number_position_name_or_structure(inputs, statement, dims):
    found = as_stated(inputs, statement, ("seq", "rows"))
    assert found.dims == dims
    assert as_stated(inputs, statement_of(found)).dims == dims


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        (3, "no input has a dim 3"),
        ({"z": 0}, r"there is no input 'z'; there are: 'seq', 'rows'"),
        ((1,), "one entry for each of the 2 inputs"),
        ("x", "one entry for each of the 2 inputs"),
        (True, "one entry for each of the 2 inputs"),
        ({"seq": "a"}, "does not fit the structure"),
        ({"seq": 5}, r"shape \(7, 3, 6\) has no dim 5"),
        ((0, 0), r"differ in their numbers of samples: \[7, 3\]"),
    ],
)
def test_a_statement_that_does_not_fit_is_refused(statement, message):
    with pytest.raises(DataError, match=message):
        as_stated(Inputs((SEQ, ROWS)), statement, ("seq", "rows"))


def test_names_become_positions_where_inputs_go_by_position():
    assert by_position({"seq": 1, "mask": 0}, ("seq", "rows")) == {0: 1, "mask": 0}
    assert by_position(1, ("seq",)) == 1


@pytest.mark.parametrize(
    ("inputs", "target", "dims", "samples"),
    [
        (Inputs((ROWS, TABLE)), LABELS, (0, None), 3),
        (Inputs((FLAT, OFFSETS)), torch.zeros(4), (None, 0), 4),
        (Inputs((SEQ, ROWS)), LABELS, (1, 0), 3),
        (Inputs((SEQ,)), LABELS, (1,), 3),
        (Inputs((ROWS,)), {"sizes": torch.zeros(9, 2), "y": LABELS}, (0,), 3),
        (
            Inputs((ROWS,)),
            [{"boxes": torch.zeros(5, 4)}, {"boxes": torch.zeros(1, 4)}, {"boxes": torch.zeros(2, 4)}],
            (0,),
            3,
        ),
        (Inputs((torch.randn(8, 3, 6, 6),)), torch.zeros(3, 6), (0,), 8),  # three boxes are not three channels
        (Inputs((ROWS,)), None, (0,), 3),
        (Inputs((ROWS,)), torch.tensor(1.0), (0,), 3),
        (Inputs((SCALAR, ROWS)), LABELS, (None, 0), 3),
    ],
    ids=[
        "rows",
        "flat",
        "time first",
        "one time first",
        "dict",
        "list of dicts",
        "boxes",
        "none",
        "scalar",
        "scalar input",
    ],
)
def test_the_target_tells_where_the_batch_is(inputs, target, dims, samples):
    found = by_target(inputs, target)
    assert found.dims == dims
    assert sample_count(found, target) == samples


def test_a_target_that_only_the_output_is_as_long_as_counts_the_samples():
    nodes, target = Inputs((torch.randn(9, 6), torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]))), torch.zeros(3)
    found = by_target(nodes, target)
    assert sample_count(found, target, torch.zeros(3, 4)) == 3
    assert sample_count(found, target, {"logits": torch.zeros(3, 4)}) == 3
    assert sample_count(found, target, torch.zeros(9, 4)) == 9


def test_sizes_of_a_target():
    assert target_sizes((torch.zeros(7), torch.tensor(1.0), {"a": torch.zeros(2, 3)})) == [7, 2]
    assert target_sizes([{"a": torch.zeros(5)}, {"a": torch.zeros(4)}]) == [2]
    assert target_sizes("text") == []


def located(model, *args):
    def run(inputs):
        with torch.no_grad():
            return [model(*inputs.args)]

    inputs = Inputs(args)
    return by_running(inputs, run, run(inputs), inputs.names(model.forward))


class Pooled(nn.Module):
    """Over time: (time, batch, 6) to (batch, 6)."""

    def forward(self, x):
        return x.cumsum(0)[-1]


class Running(nn.Module):
    """Over time: (time, batch, 6) to the same."""

    def forward(self, x):
        return x.cumsum(0)


class Fixed(nn.Module):
    """Takes two samples of any length, each step by itself."""

    def forward(self, x):
        return x.view(2, -1, 6).tanh()


@pytest.mark.parametrize("model", [Pooled(), Running()])
@pytest.mark.parametrize("shape", [(7, 3, 6), (3, 7, 6), (4, 4, 6), (5, 1, 6)])
def test_time_first_is_found_at_any_sizes(model, shape):
    found, note = located(model, torch.randn(shape))
    assert found.dims == (1,)
    assert note.startswith("the batch is taken to be dim 1 of `x`")
    assert "batch_dims=" in note


@pytest.mark.parametrize(
    ("model", "x"),
    [
        (nn.Linear(6, 4), torch.randn(3, 6)),
        (nn.Linear(6, 4), torch.randn(3, 5, 6)),
        (nn.LSTM(6, 4, batch_first=True), torch.randn(3, 5, 6)),
        (Fixed(), torch.randn(2, 5, 6)),
        (nn.Sequential(nn.Linear(6, 4), nn.Flatten(0)), torch.randn(3, 6)),
    ],
    ids=["rows", "rows of steps", "lstm", "fixed batch", "flattened"],
)
def test_batch_first_stays(model, x):
    first = model if not isinstance(model, nn.LSTM) else lambda given: model(given)[0]
    holder = nn.Module()
    holder.forward = lambda x: first(x)  # noqa: PLW0108 -- of a signature with a name
    found, note = located(holder, x)
    assert (found.dims, note) == ((0,), None)


def test_flat_ids_have_their_batch_in_the_offsets():
    bag = nn.EmbeddingBag(50, 8)
    found, note = located(bag, FLAT, OFFSETS)
    assert (found.dims, found.batch) == ((None, 0), 4)
    assert "dim 0 of `offsets`" in note


@pytest.mark.parametrize(
    ("second", "reader"),
    [
        (torch.tensor([0, 3, 4, 8, 10]), partial(nn.EmbeddingBag(50, 8, include_last_offset=True))),
        (
            torch.tensor([0, 0, 0, 1, 2, 2, 2, 3, 3, 3]),
            lambda x, at: torch.zeros(4, 1).index_add(0, at, x[:, None].float()),
        ),
        (torch.tensor([3, 1, 4, 2]), lambda x, n: torch.stack([part.float().sum() for part in x.split(n.tolist())])),
    ],
    ids=["bounds", "sample of each row", "lengths"],
)
def test_samples_that_no_dim_is_as_long_as_are_counted(second, reader):
    holder = nn.Module()
    holder.forward = lambda x, how: reader(x, how)  # noqa: PLW0108 -- as above
    found, note = located(holder, FLAT, second)
    assert (found.dims, found.batch, found.is_resizable) == ((None, None), 4, False)
    assert "one of the 4 samples" in note


def test_a_sum_over_everything_has_no_batch_and_says_so():
    holder = nn.Module()
    holder.forward = lambda x: x.sum((0, 1))
    found, note = located(holder, torch.randn(4, 5, 6))
    assert (found.batch, found.resized(9)) == (None, found)
    assert "costs are for all of the example inputs together" in note


def test_a_list_of_one_output_a_sample_follows_the_batch():
    layer = nn.Linear(3, 8)
    inputs = Inputs((torch.randn(2, 3),))

    def run(given):
        return [layer(row[None]) for row in given.args[0]]

    found, note = by_running(inputs, run, run(inputs), ["rows"])
    assert (found.dims, note) == ((0,), None)
