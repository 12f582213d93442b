"""`remove-pool`: where it is exact, what it keeps where it is not, what it refuses."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import SpecError
from fxsurgery.passes import AddPool, RemovePool
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, PassResult
from programs import program
from zoo import lively


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def captured(model: nn.Module, *shape: int) -> Program:
    return capture(lively(model).eval(), images(*(shape or (2, 3, 8, 8))))


def pooled(pool: nn.Module, *between: nn.Module, size: int = 8) -> Program:
    """conv, relu, pool, what is between, flatten, dense."""
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), pool, *between, nn.Flatten())
    count = body(images(2, 3, size, size)).shape[1]
    return captured(nn.Sequential(*body, nn.Linear(count, 5)), 2, 3, size, size)


def reasons(result: PassResult) -> list[str]:
    assert result.changes == 0
    return [r.reason for r in result.refusals]


AVERAGES = {
    "windows that tile": (nn.AvgPool2d(2), 8),
    "windows that leave a rest": (nn.AvgPool2d(2), 7),
    "a smaller last window": (nn.AvgPool2d(2, ceil_mode=True), 7),
    "windows that overlap": (nn.AvgPool2d(3, 2), 9),
    "windows with gaps": (nn.AvgPool2d(2, 3), 8),
    "padding that counts": (nn.AvgPool2d(3, 2, 1), 8),
    "padding that does not": (nn.AvgPool2d(3, 2, 1, count_include_pad=False), 8),
    "padding and a rest": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), 8),
    "a divisor": (nn.AvgPool2d(2, divisor_override=3), 8),
    "a rectangle": (nn.AvgPool2d((2, 3), (2, 1)), 8),
    "all of a small map": (nn.AvgPool2d(2), 2),
}


@pytest.mark.parametrize("case", AVERAGES)
def test_an_average_pool_before_a_dense_layer_goes_exactly(case: str):
    pool, size = AVERAGES[case]
    start = pooled(pool, nn.Dropout(0.5), size=size)
    result = RemovePool("_2")(start)
    assert result.effect is Effect.EXACT
    x = images(7, 3, size, size, seed=1)
    assert relative_error(result.program(x), start(x)) < 1e-5
    assert "AvgPool" not in result.program.text()


def test_each_of_four_positions_gets_a_quarter():
    start = pooled(nn.AvgPool2d(2))
    result = RemovePool("_2")(start).program
    weight = start.graph_module.get_parameter("4.weight").detach().reshape(5, 4, 4, 4)
    wanted = weight.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    assert torch.allclose(result.graph_module.get_parameter("4.weight"), wanted.flatten(1), atol=1e-7)


def test_a_pointwise_convolution_between_is_exact_as_well():
    start = pooled(nn.AvgPool2d(2), nn.Conv2d(4, 6, 1))
    result = RemovePool("_2")(start)
    assert result.effect is Effect.EXACT
    x = images(7, 3, 8, 8, seed=1)
    assert relative_error(result.program(x), start(x)) < 1e-5


def test_where_padding_counts_an_offset_between_is_not():
    """The windows at the border give less than a constant: what is added before is not what is added after."""
    pool = nn.AvgPool2d(3, 2, 1)
    assert RemovePool("_2")(pooled(pool, nn.Conv2d(4, 6, 1))).effect is Effect.LOSSY
    assert RemovePool("_2")(pooled(pool, nn.Conv2d(4, 6, 1, bias=False))).effect is Effect.EXACT


def test_a_batch_norm_between_keeps_the_outputs_but_not_the_training():
    """It is one affine map in eval mode; the variance of the unpooled map is another."""
    start = pooled(nn.AvgPool2d(2), nn.BatchNorm2d(4))
    result = RemovePool("_2")(start)
    assert result.effect is Effect.LOSSY
    assert result.error is not None
    assert result.error < 1e-5
    x = images(7, 3, 8, 8, seed=1)
    assert relative_error(result.program(x), start(x)) < 1e-5
    before, after = start.trainable_copy().train(), result.program.trainable_copy().train()
    assert relative_error(after(x), before(x)) > 1e-2


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(2)])
def test_what_does_not_commute_with_a_mean_makes_it_lossy(between: nn.Module):
    start = pooled(nn.AvgPool2d(2), between)
    result = RemovePool("_2")(start)
    assert result.effect is Effect.LOSSY
    assert result.changes
    sums = [p.graph_module.get_parameter("5.weight").sum(1) for p in (start, result.program)]
    assert torch.allclose(*sums, atol=1e-5)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, dilation=2, stride=2)])
def test_a_max_pool_goes_with_a_share_for_each_position_of_its_window(pool: nn.Module):
    start = pooled(pool)
    result = RemovePool("_2")(start)
    assert result.effect is Effect.LOSSY
    assert result.error is None
    weights = [p.graph_module.get_parameter("4.weight") for p in (start, result.program)]
    assert weights[1].shape[1] == 4 * 64
    assert torch.allclose(weights[0].sum(1), weights[1].sum(1), atol=1e-5)


def test_removing_an_added_average_pool_spreads_the_sums():
    start = captured(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 49, 5)), 2, 3, 7, 7)
    added = AddPool("_1")(start).program
    back = RemovePool("_1_pool")(added)
    assert back.effect is Effect.EXACT
    assert back.program.run_examples()[0].shape == (2, 5)
    assert back.program.graph_module.get_parameter("3.weight").shape == (5, 4 * 49)


class Functional(nn.Module):
    """One pool that is called twice, and one that is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.pool = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.AvgPool2d(2)
        self.dense = nn.Linear(4 * 4 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.a(x)))
        x = self.pool(torch.relu(self.b(x)))
        return self.dense(F.avg_pool2d(x, 2, ceil_mode=True).view(-1, 64))


@pytest.mark.parametrize(("node", "effect"), [("pool", "lossy"), ("pool_1", "lossy"), ("avg_pool2d", "exact")])
def test_one_call_of_a_shared_pool_goes_and_a_written_out_view_follows(node: str, effect: str):
    start = captured(Functional(), 2, 3, 32, 32)
    result = RemovePool(node)(start)
    assert result.effect.value == effect
    assert sum("pool" in line.split("=")[0] for line in result.program.text().splitlines()) == 2
    assert "-1, 256" in result.program.text()


def test_pools_over_a_line_and_a_volume_go_as_well():
    for conv, pool, shape in (
        (nn.Conv1d, nn.AvgPool1d(3, 2), (2, 3, 9)),
        (nn.Conv3d, nn.AvgPool3d(2, divisor_override=5), (2, 3, 4, 4, 6)),
    ):
        body = nn.Sequential(conv(3, 4, 1), nn.ReLU(), pool, nn.Flatten())
        start = captured(nn.Sequential(*body, nn.Linear(body(images(*shape)).shape[1], 5)), *shape)
        assert RemovePool("_2")(start).effect is Effect.EXACT


def test_a_pool_of_zoo_nets_goes_exactly_where_flattening_follows():
    assert RemovePool("cell2_3")(program("PooledLinear")).effect is Effect.EXACT
    assert RemovePool("features_3")(program("FlattenLinear")).effect is Effect.LOSSY


def test_a_part_of_the_positions_is_not_exact():
    class Corner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.dense = nn.Conv2d(3, 4, 1), nn.AvgPool2d(2), nn.Linear(4 * 4 * 2, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.dense(self.pool(self.conv(x)).chunk(2, 3)[0].flatten(1))

    result = RemovePool("pool")(captured(Corner()))
    assert result.effect is Effect.LOSSY
    assert result.changes


def test_global_and_adaptive_pools_are_refused():
    body = (nn.Conv2d(3, 4, 1), nn.ReLU())
    for pool in (nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(2)):
        count = 4 * int(pool.output_size) ** 2
        start = captured(nn.Sequential(*body, pool, nn.Flatten(), nn.Linear(count, 5)))
        assert reasons(RemovePool("_2")(start)) == [
            "an adaptive or global pool has no windows: it gives a fixed number of positions"
        ]
    start = captured(nn.Sequential(*body, nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 5)))
    assert reasons(RemovePool("_2")(start)) == ["it is a global pool: one window is the whole map"]


def test_a_pool_whose_indices_are_read_is_refused():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool = nn.Conv2d(3, 4, 1), nn.MaxPool2d(2, return_indices=True)

        def forward(self, x: Tensor) -> Tensor:
            y, index = self.pool(self.conv(x))
            return F.max_unpool2d(y, index, 2)

    assert reasons(RemovePool("pool")(captured(Net()))) == ["it gives indices as well, or takes its input by name"]


def test_a_map_that_the_program_gives_out_keeps_its_shape():
    start = captured(nn.Sequential(nn.Conv2d(3, 4, 1), nn.MaxPool2d(2)))
    assert reasons(RemovePool("_1")(start)) == ["it is an output of the program, and its shape would change"]


def test_a_reader_that_writes_in_place_does_not_get_at_another_readers_map():
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.pool, self.dense = nn.Conv2d(3, 4, 1), nn.AvgPool2d(2), nn.Linear(4 * 16, 5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.dense(torch.relu_(self.pool(y)).flatten(1)) + y.mean()

    (reason,) = reasons(RemovePool("pool")(captured(InPlace())))
    assert "others read" in reason


def test_what_is_no_pool_raises():
    with pytest.raises(SpecError, match="there are: cell1_1, cell2_3"):
        RemovePool("cell1_0")(program("PooledLinear"))


def test_a_pool_that_its_input_is_taken_from_stays():
    """The token mixer of PoolFormer: `x + s (pool(x) - x)` without the pool is x, and nothing in `s` would train."""

    class Mixing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.pool, self.scale = nn.Conv2d(3, 4, 1), nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return (x + self.scale(self.pool(x) - x)).mean((2, 3))

    start = capture(Mixing().eval(), torch.randn(2, 3, 8, 8))
    assert [r.reason for r in RemovePool("pool")(start).refusals] == ["both operands would be %stem, which cancels out"]
    assert not list(RemovePool.candidates(start))
