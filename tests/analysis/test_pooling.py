"""What pools compute as matrices, where positions lie, which values are maps, and how views regroup dims."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.pool_windows import block_ends, feature_maps, read_pool, spread
from fxsurgery.analysis.spatial_maps import SpatialAxis, aggregate, chosen, nearest
from fxsurgery.capture import capture
from fxsurgery.rewriting.view_inference import infer_view_sizes
from nonempty import nonempty
from programs import program

POOLS = [
    nn.AvgPool2d(kernel, stride, padding, ceil_mode=ceil, count_include_pad=counts, divisor_override=divisor)
    for (kernel, stride, padding), ceil, counts, divisor in itertools.product(
        [(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 3, 0), ((2, 3), (1, 2), (1, 0))], [False, True], [False, True], [None, 5]
    )
]


@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("size", [(8, 7), (9, 6)])
def test_an_average_pool_is_the_product_of_its_shares_along_each_dim(pool: nn.AvgPool2d, size: tuple[int, int]):
    start = capture(nn.Sequential(pool), torch.zeros(1, 1, *size))
    node = next(n for n in start.nodes if n.op == "call_module")
    every = torch.eye(size[0] * size[1], dtype=torch.float64).reshape(-1, 1, *size)  # one position at a time
    wanted = pool(every)[:, 0]
    read = read_pool(start, node)
    assert read is not None
    rows, columns = (read.shares(d, size[d], wanted.shape[1 + d]) for d in (0, 1))
    got = torch.einsum("ih,jw->hwij", rows, columns).flatten(0, 1)
    assert torch.allclose(got, wanted)


def test_a_function_is_read_as_the_module_is():
    class Functions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            return F.max_pool2d(x, kernel_size=(2, 1), dilation=(2, 1))

    start = capture(Functions(), torch.zeros(1, 1, 12, 12))
    average, largest = (found for node in start.nodes if (found := read_pool(start, node)) is not None)
    assert (average.kind, average.kernel, average.stride, average.padding) == ("average", (3, 3), (2, 2), (1, 1))
    assert not average.counts_padding
    assert (largest.kind, largest.kernel, largest.stride, largest.dilation) == ("max", (2, 1), (2, 1), (2, 1))


@pytest.mark.parametrize("size", list(range(2, 12)))
@pytest.mark.parametrize("ceil", [False, True])
def test_under_a_pool_of_two_the_nearest_positions_are_the_windows_and_the_rest_goes_to_the_last(size: int, ceil: bool):
    count = -(-size // 2) if ceil else size // 2
    found = nearest(SpatialAxis(), SpatialAxis().through(2, 2, 0, 1), size, count)
    assert found.argmax(0).tolist() == [min(i // 2, count - 1) for i in range(size)]
    assert found.shape == (count, size)
    assert all(entry in {0.0, 1.0} for entry in nonempty(found.flatten().tolist()))


@pytest.mark.parametrize(("old", "new"), list(itertools.product(range(1, 9), range(1, 9))))
def test_every_position_gives_its_weight_once(old: int, new: int):
    for axis in (SpatialAxis(0.5, 2.0), SpatialAxis(-1.0, 0.7)):
        assert torch.allclose(nearest(SpatialAxis(), axis, old, new).sum(0), torch.ones(old, dtype=torch.float64))


def test_centers_go_through_windows_and_stretching():
    assert SpatialAxis().through(3, 1, 1, 1) == SpatialAxis()
    assert SpatialAxis().through(3, 2, 0, 2) == SpatialAxis(2.0, 2.0)
    assert SpatialAxis(0.5, 2.0).through(2, 2, 0, 1) == SpatialAxis(1.5, 4.0)
    assert SpatialAxis().stretched(8, 4) == SpatialAxis().through(2, 2, 0, 1)
    assert SpatialAxis().stretched(4, 8).centers(4).tolist() == [-0.25, 0.25, 0.75, 1.25]


def test_aggregation_is_the_sum_over_all_dims():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, 4, 5, generator=generator)
    rows, columns = torch.rand(2, 4, generator=generator), torch.rand(7, 5, generator=generator)
    wanted = torch.einsum("ochw,ih,jw->ocij", weight, rows, columns)
    assert torch.allclose(aggregate(weight, (None, rows, columns)), wanted, atol=1e-6)


def test_the_chosen_entry_is_the_best_of_its_window_and_absence_is_told():
    scores = torch.tensor([[[1.0, 5.0, 2.0, 7.0, 3.0]]])
    windows = torch.tensor([[1.0, 1, 0, 0, 0], [0, 0, 1, 1, 1], [0, 0, 0, 0, 0]])
    assert chosen(scores, (None, windows)).tolist() == [[1, 3, -1]]


@pytest.mark.parametrize(
    ("before", "now", "view", "wanted"),
    [
        ((2, 6, 4, 4), (2, 6, 2, 2), (2, 96), [2, 24]),
        ((2, 6, 4, 4), (2, 6, 2, 2), (2, 6, 16), [2, 6, 4]),
        ((2, 6, 4, 4), (2, 6, 2, 2), (2, 2, 48), [2, 2, 12]),
        ((2, 6, 4, 4), (2, 6, 2, 2), (12, 4, 4), [12, 2, 2]),
        ((2, 6, 4, 4), (2, 6, 2, 2), (2, 1, 96), [2, 1, 24]),
        ((2, 6, 4, 4), (2, 6, 2, 2), (2, 2, 3, 4, 4), [2, 2, 3, 2, 2]),
        ((2, 6, 1, 1), (2, 6, 2, 2), (2, 6), [2, 24]),
        ((1, 1, 4, 4), (1, 1, 2, 2), (1, 16), [1, 4]),
        ((2, 96), (2, 24), (2, 6, 4, 4), None),
        ((2, 4, 6), (2, 2, 6), (2, 8, 3), None),
    ],
)
def test_a_view_joins_and_splits_the_same_dims(before, now, view, wanted):
    assert infer_view_sizes(before, now, view) == wanted


def test_maps_are_told_from_tokens_and_features():
    assert set(feature_maps(program("Attention"))) == {"x", "patches"}
    assert feature_maps(program("PooledLinear"))["cell2_3"] == (2, 6, 2, 2)
    assert "flatten" not in feature_maps(program("PooledLinear"))
    assert feature_maps(program("Conv1dNet"))["gelu"] == (2, 6, 2)


def test_blocks_end_after_their_last_activation_where_no_shortcut_passes_by():
    assert [n.name for n in block_ends(program("Plain"))] == ["body_3", "body_6"]
    assert [n.name for n in block_ends(program("Residual"))] == ["stem", "relu_1", "relu_2"]
    assert [n.name for n in block_ends(program("PooledLinear"))] == ["cell1_3", "cell2_2"]


def test_spread_takes_the_last_and_evenly_before_it():
    nodes = list(program("resnet18").nodes)[:10]
    assert spread(nodes, 3) == [nodes[2], nodes[5], nodes[9]]
    assert spread(nodes[:2], 4) == nodes[:2]
    assert spread([], 4) == []
