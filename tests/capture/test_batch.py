"""Models whose batch is not dim 0 of the first input: the graph, the cost of one sample, and other batch sizes."""

import pytest
import torch
from torch import nn

from fxsurgery.analysis.cost import cost
from fxsurgery.capture import capture
from fxsurgery.errors import DataError


class Bag(nn.Module):
    """Flat ids and offsets to (batch, 4): a head of 16 x 4."""

    def __init__(self, **options) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(50, 16, mode="mean", **options), nn.Linear(16, 4)

    def forward(self, text, offsets):
        return self.head(self.bag(text, offsets))


class Reader(nn.Module):
    """(time, batch, 6) to (batch, 4), or with `each` to (time, batch, 4)."""

    def __init__(self, *, each: bool = False) -> None:
        super().__init__()
        self.each, self.cell, self.head = each, nn.GRU(6, 8), nn.Linear(8, 4)

    def forward(self, x):
        steps, last = self.cell(x)
        return self.head(steps if self.each else last[-1])


class Both(nn.Module):
    """(time, batch, 6) and (batch, 5) to (batch, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.rows = nn.GRU(6, 8), nn.Linear(5, 8)

    def forward(self, steps, rows):
        return self.cell(steps)[1][0] + self.rows(rows)


class Scaled(nn.Module):
    """(batch, 6) and a number to (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, x, factor):
        return self.head(x) * factor


class Fields(nn.Module):
    """A dict of (time, batch, 6) and (batch, 5) to (batch, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.both = Both()

    def forward(self, fields):
        return self.both(fields["steps"], fields["rows"])


class Pair(nn.Module):
    """A tuple of flat ids and offsets to (batch, 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = Bag()

    def forward(self, pair):
        return self.bag(*pair)


IDS, OFFSETS = torch.arange(10), torch.tensor([0, 3, 4, 8])
STEP = 3 * 8 * (6 + 8)
"""Multiplications of a GRU's step."""


@pytest.mark.parametrize(
    ("model", "args", "dims", "macs"),
    [
        (Bag(), (IDS, OFFSETS), (None, 0), 64),
        (Bag(include_last_offset=True), (IDS, torch.tensor([0, 3, 4, 8, 10])), (None, None), 64),
        (Reader(), (torch.randn(7, 3, 6),), (1,), 7 * STEP + 32),
        (Reader(), (torch.randn(3, 7, 6),), (1,), 3 * STEP + 32),
        (Reader(), (torch.randn(4, 4, 6),), (1,), 4 * STEP + 32),
        (Reader(), (torch.randn(5, 1, 6),), (1,), 5 * STEP + 32),
        (Reader(each=True), (torch.randn(7, 3, 6),), (1,), 7 * (STEP + 32)),
        (Both(), (torch.randn(7, 3, 6), torch.randn(3, 5)), (1, 0), 7 * STEP + 40),
        (Fields(), ({"rows": torch.randn(3, 5), "steps": torch.randn(7, 3, 6)},), (0, 1), 7 * STEP + 40),
        (Pair(), ((IDS, OFFSETS),), (None, 0), 64),
        (Scaled(), (torch.randn(3, 6), torch.tensor(2.0)), (0, None), 24),
        (Scaled(), (torch.randn(3, 7, 6), torch.tensor(2.0)), (0, None), 7 * 24),
        (nn.TransformerEncoderLayer(8, 2, 16), (torch.randn(5, 2, 8),), (1,), 5 * (4 * 64 + 2 * 128) + 2 * 5 * 5 * 8),
    ],
    ids=[
        "flat", "bounds", "time first", "shorter than the batch", "as long as the batch", "one sample", "each step",
        "two", "dict", "tuple", "scalar", "batch first", "attention",
    ],
)  # fmt: skip
def test_one_sample_is_counted_wherever_the_batch_is(model, args, dims, macs):
    program = capture(model.eval(), args)
    assert program.batch_dims == dims
    assert cost(program).macs == macs


@pytest.mark.parametrize(
    ("model", "args", "larger"),
    [
        (Bag(), (IDS, OFFSETS), (torch.arange(13), torch.tensor([0, 1, 5, 5, 9, 11]))),
        (Reader(), (torch.randn(7, 3, 6),), (torch.randn(7, 5, 6),)),
        (Both(), (torch.randn(7, 3, 6), torch.randn(3, 5)), (torch.randn(7, 2, 6), torch.randn(2, 5))),
        (Fields(), ({"rows": torch.randn(3, 5), "steps": torch.randn(7, 3, 6)},),
         ({"rows": torch.randn(4, 5), "steps": torch.randn(7, 4, 6)},)),
    ],
    ids=["flat", "time first", "two", "dict"],
)  # fmt: skip
def test_the_graph_takes_other_batches(model, args, larger):
    program = capture(model.eval(), args)
    assert not [note for note in program.notes if "this number of inputs only" in note]
    with torch.no_grad():
        torch.testing.assert_close(program(*larger), model(*larger))


def test_a_recorded_size_is_that_of_the_batch_dim():
    class Flattening(nn.Module):
        """(time, batch, 6) to (batch, 4), through a shape that only recording sees as a number."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(6, 4)

        def forward(self, x):
            last = x.cumsum(0)[-1]
            if not isinstance(last.shape[0], int):
                raise TypeError("numbers only")
            return self.head(last.reshape(last.shape[0] * 2, 3).reshape(last.shape[0], 6))

    model = Flattening()
    program = capture(model, torch.randn(7, 3, 6))
    x = torch.randn(7, 5, 6)
    torch.testing.assert_close(program(x), model(x))


def test_the_layout_that_was_inferred_is_told_and_a_stated_one_is_not():
    note = next(note for note in capture(Reader(), torch.randn(7, 3, 6)).notes if "batch" in note)
    assert note == "the batch is taken to be dim 1 of `x`, which the outputs follow; batch_dims= overrides this"
    stated = capture(Reader(), torch.randn(7, 3, 6), batch_dims={"x": 0})
    assert (stated.batch_dims, stated.notes) == ((0,), ())
    assert cost(stated).macs == round((21 * STEP + 3 * 32) / 7)


def test_a_stated_layout_that_does_not_fit_is_refused():
    with pytest.raises(DataError, match=r"there is no input 'y'; there are: 'x'"):
        capture(Reader(), torch.randn(7, 3, 6), batch_dims={"y": 1})


def test_inputs_by_name_keep_their_layout_in_the_order_of_the_signature():
    named = {"rows": torch.randn(3, 5), "steps": torch.randn(7, 3, 6)}
    for stated in (None, {"steps": 1, "rows": 0}, 1):
        program = capture(Both(), example_kwargs=named, batch_dims=stated)
        assert list(program.example_kwargs) == ["steps", "rows"]
        assert program.batch_dims == (1, 0)
