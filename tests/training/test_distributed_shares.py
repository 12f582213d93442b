"""How a batch is shared out."""

from collections import namedtuple

import numpy as np
import pytest
import torch

from fxsurgery.errors import DataError
from fxsurgery.inputs import Inputs
from fxsurgery.training.distributed import BatchSharding, Shard, rows_of


@pytest.mark.parametrize(
    ("samples", "world", "shares"),
    [
        (7, 2, [(0, 4, 4 / 7), (4, 7, 3 / 7)]),
        (6, 3, [(0, 2, 1 / 3), (2, 4, 1 / 3), (4, 6, 1 / 3)]),
        (2, 3, [(0, 1, 0.5), (1, 2, 0.5), (0, 1, 0.0)]),
        (5, 1, [(0, 5, 1.0)]),
    ],
)
def test_every_row_is_taken_once_and_the_weights_add_up(samples, world, shares):
    found = [BatchSharding(rank, world).share(samples) for rank in range(world)]
    assert found == [Shard(*share) for share in shares]
    assert sum(share.weight for share in found) == pytest.approx(1)


def test_rows_are_taken_wherever_the_batch_is():
    Pair = namedtuple("Pair", "left right")  # noqa: PYI024 -- as users write them
    x, mask = torch.arange(6).reshape(3, 2), torch.ones(2, 2)
    inputs = Inputs((x, mask), {"scale": 2.0, "deep": [x + 1]})
    target = {"boxes": [{"a": 1}, {"a": 2}, {"a": 3}], "pair": Pair(x[:, 0], np.arange(3)), "names": ("u", "v", "w")}
    mine, wanted = rows_of(inputs, target, Shard(1, 3, 2 / 3))
    assert torch.equal(mine.args[0], x[1:])
    assert mine.args[1] is mask
    assert mine.kwargs["scale"] == 2.0
    assert torch.equal(mine.kwargs["deep"][0], x[1:] + 1)
    assert wanted["boxes"] == [{"a": 2}, {"a": 3}]
    assert wanted["pair"].left.tolist() == [2, 4]
    assert wanted["pair"].right.tolist() == [1, 2]
    assert wanted["names"] == ("v", "w")


def test_rows_are_taken_along_the_batch_dim():
    steps, lengths = torch.arange(24).reshape(4, 3, 2), torch.tensor([4, 2, 4])
    mine, wanted = rows_of(Inputs((steps, lengths), batch_dims=(1, 0)), torch.arange(3), Shard(1, 3, 2 / 3))
    assert torch.equal(mine.args[0], steps[:, 1:])
    assert mine.args[1].tolist() == [2, 4]
    assert wanted.tolist() == [1, 2]
    assert mine.batch == 2


@pytest.mark.parametrize(
    ("inputs", "target", "message"),
    [
        (
            Inputs((torch.arange(9), torch.tensor([0, 2, 5])), batch_dims=(None, 0)),
            torch.zeros(3),
            "offsets or lengths",
        ),
        (
            Inputs((torch.arange(9), torch.tensor([2, 3, 4])), batch_dims=(None, 0)),
            torch.zeros(3),
            "offsets or lengths",
        ),
        (Inputs((torch.randn(9, 2), torch.arange(9) // 3)), torch.zeros(3), r"target \(3,\) float32 is not as long"),
        (Inputs((torch.randn(4, 3, 6, 6),)), torch.zeros(9, 6), r"target \(9, 6\) float32 is not as long"),
    ],
    ids=["offsets", "lengths", "graphs", "boxes"],
)
def test_samples_without_rows_of_their_own_are_not_shared(inputs, target, message):
    with pytest.raises(DataError, match=message):
        rows_of(inputs, target, Shard(0, 2, 2 / 3))


def test_a_tuple_of_batched_tensors_is_no_list_of_samples():
    x = torch.arange(4).reshape(2, 2)
    _, wanted = rows_of(Inputs((x,)), (x, x), Shard(0, 1, 0.5))
    assert [len(part) for part in wanted] == [1, 1]
