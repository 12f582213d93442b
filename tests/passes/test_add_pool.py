"""`add-pool`: which weights each new position takes, and what a trained network keeps of its accuracy."""

import functools

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import SpecError
from fxsurgery.passes import AddPool
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, PassResult
from programs import program
from zoo import lively


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def captured(model: nn.Module, *shape: int) -> Program:
    return capture(lively(model).eval(), images(*(shape or (2, 3, 8, 8))))


def reasons(result: PassResult) -> list[str]:
    assert result.changes == 0
    return [r.reason for r in result.refusals]


def blocked(x: Tensor, pool: nn.Module) -> Tensor:
    """Each position of x replaced by the pooled value that stands for it, loop by loop; the last one at the border."""
    pooled, result = pool(x), torch.empty_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            result[:, :, i, j] = pooled[:, :, min(i // 2, pooled.shape[2] - 1), min(j // 2, pooled.shape[3] - 1)]
    return result


class Ended(nn.Module):
    """A convolution, an activation, and a dense layer by way of `end`."""

    def __init__(self, size: int, end) -> None:
        super().__init__()
        self.conv, self.dense, self.end = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * size * size, 5), end

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(self.end(self.features(x)))


ENDS = {
    "flatten": lambda x: x.flatten(1),
    "a view with constants": lambda x: x.view(-1, 4 * x.shape[2] * x.shape[3]),
    "a view of the batch": lambda x: x.view(x.size(0), -1),
    "a reshape by computed sizes": lambda x: torch.reshape(x, (x.size(0), x.size(1) * x.size(2) * x.size(3))),
    "channels last": lambda x: x.permute(0, 2, 3, 1).flatten(1),
    "rows and columns swapped": lambda x: x.transpose(2, 3).reshape(x.shape[0], -1),
    "two views": lambda x: x.flatten(2).flatten(1),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize(("size", "ceil"), [(8, False), (7, False), (7, True), (2, False)])
@pytest.mark.parametrize("kind", ["average", "max"])
def test_dense_layer_gives_what_it_gave_on_the_map_of_blocks(end: str, size: int, ceil: bool, kind: str):
    model = Ended(size, ENDS[end])
    start = captured(model, 2, 3, size, size)
    result = AddPool("relu", kind, ceil)(start)
    pool = (nn.AvgPool2d if kind == "average" else nn.MaxPool2d)(2, ceil_mode=ceil)
    x = images(6, 3, size, size, seed=1)
    wanted = model.dense(ENDS[end](blocked(model.features(x), pool)))
    assert result.effect is Effect.LOSSY
    assert relative_error(result.program(x), wanted) < 1e-5


def test_a_size_that_is_written_out_is_rewritten():
    result = AddPool("relu")(captured(Ended(8, lambda x: x.view(-1, 256))))
    assert "view(%relu_pool, -1, 64)" in result.program.text()


def test_a_map_of_one_color_keeps_its_outputs_at_any_size():
    """Weights of positions that no window sees are not dropped, so what is constant over space counts as before."""
    for size, ceil in [(8, False), (7, False), (7, True)]:
        model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * size * size, 5))
        start = captured(model, 2, 3, size, size)
        constant = images(3, 3, 1, 1).expand(3, 3, size, size)
        got = AddPool("_1", ceil=ceil)(start).program(constant)
        assert relative_error(got, start(constant)) < 1e-5


def test_through_a_strided_convolution_places_decide():
    """Centers at 0, 2, 4, ... without the pool and 0.5, 4.5 with it: the nearest, and between two the first."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2, padding=1), nn.Flatten(),
        nn.Linear(4 * 4 * 4, 5),
    )  # fmt: skip
    result = AddPool("_1")(captured(model)).program
    weight = model[4].weight.detach().reshape(5, 4, 4, 4)
    sums = weight.unflatten(3, (2, 2)).sum(4).unflatten(2, (2, 2)).sum(3)
    assert torch.allclose(result.graph_module.get_parameter("4.weight"), sums.flatten(1), atol=1e-6)


def test_through_a_valid_convolution_the_window_moves_with_the_border():
    """A 3-tap convolution without padding moves old centers to 1, 2, ..., 8 and new ones to 2.5, 4.5, 6.5."""
    model = nn.Sequential(nn.Conv1d(3, 4, 1), nn.ReLU(), nn.Conv1d(4, 2, 3), nn.Flatten(), nn.Linear(2 * 8, 5))
    result = AddPool("_1")(captured(model, 2, 3, 10)).program
    weight = model[4].weight.detach().reshape(5, 2, 8)
    blocks = [[0, 1, 2], [3, 4], [5, 6, 7]]
    wanted = torch.stack([weight[:, :, block].sum(2) for block in blocks], 2)
    assert torch.allclose(result.graph_module.get_parameter("4.weight"), wanted.flatten(1), atol=1e-6)


class TwoBranches(nn.Module):
    """Two branches of one map, of unlike channels, flattened and joined with numbers that are no map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 3, 1)
        self.dense = nn.Linear(3 + 2 * 64 + 3 * 64, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x).tanh()
        return self.join(x, self.a(y), self.b(y))

    def join(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return self.dense(torch.cat((x.mean((2, 3)), a.flatten(1), b.permute(0, 2, 3, 1).flatten(1)), 1))


def test_branches_that_meet_in_one_dense_layer_are_told_apart():
    model = TwoBranches()
    start = captured(model)
    x, pool = images(4, 3, 8, 8, seed=2), nn.AvgPool2d(2)
    y = blocked(model.stem(x).tanh(), pool)
    wanted = model.join(x, model.a(y), model.b(y))
    assert relative_error(AddPool("tanh")(start).program(x), wanted) < 1e-5


def test_nothing_changes_where_only_a_global_mean_follows():
    start = program("Plain")
    result = AddPool("body_3")(start)
    assert result.changes == 2  # the call, and its readers
    assert result.program.graph_module.get_parameter("head.weight") is start.graph_module.get_parameter("head.weight")


def test_a_pool_over_the_whole_map_stays_one():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.AvgPool2d(8), nn.Flatten(), nn.Linear(4, 5))
    start = captured(model)
    result = AddPool("_1")(start)
    x = images(4, 3, 8, 8, seed=3)
    assert relative_error(result.program(x), start(x)) < 1e-5  # the mean of means


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.weight = nn.Parameter(images(5, 4 * 64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.avg_pool2d(self.conv(x), 1).flatten(1), self.weight)


def test_a_dense_layer_that_is_a_function_call_gets_its_weight():
    model = Functional()
    result = AddPool("conv")(captured(model)).program
    x = images(4, 3, 8, 8, seed=3)
    wanted = F.linear(blocked(model.conv(x), nn.AvgPool2d(2)).flatten(1), model.weight)
    assert relative_error(result(x), wanted) < 1e-5


def test_a_convolution_over_the_whole_map_is_a_dense_layer():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Tanh(), nn.Conv2d(4, 5, 8), nn.Flatten())
    x = images(4, 3, 8, 8, seed=3)
    result = AddPool("_1")(captured(model)).program
    wanted = model[2:](blocked(model[:2](x), nn.AvgPool2d(2)))
    assert relative_error(result(x), wanted) < 1e-5


def test_a_map_of_a_line_and_of_a_volume_are_pooled_as_well():
    for conv, shape in ((nn.Conv1d, (2, 3, 6)), (nn.Conv3d, (2, 3, 4, 4, 6))):
        count = 4 * torch.Size(shape[2:]).numel()
        start = captured(nn.Sequential(conv(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(count, 5)), *shape)
        result = AddPool("_1")(start)
        assert result.changes
        weight = result.program.graph_module.get_parameter("3.weight")
        assert weight.shape[1] == count // 2 ** (len(shape) - 2)
        halves = start.graph_module.get_parameter("3.weight").sum(1)
        assert torch.allclose(weight.sum(1), halves, atol=1e-5)


def test_weights_of_a_frozen_half_precision_layer_keep_both():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))).eval()
    model = model.requires_grad_(False).bfloat16()
    weight = AddPool("_1")(capture(model, images(2, 3, 8, 8).bfloat16())).program.graph_module.get_parameter("3.weight")
    assert weight.dtype == torch.bfloat16
    assert not weight.requires_grad


PICKS = {
    "largest": lambda block: block[block.abs().argmax()],
    "maximum": lambda block: block.max(),
    "mean": lambda block: block.mean(),
}


@pytest.mark.parametrize("choice", PICKS)
def test_ablations_keep_one_number_of_each_block(choice: str):
    model = Ended(4, ENDS["flatten"])
    result = AddPool("relu", weights=choice)(captured(model, 2, 3, 4, 4)).program
    weight, wanted = model.dense.weight.detach().reshape(5, 4, 4, 4), torch.empty(5, 4, 2, 2)
    for o, c, i, j in torch.cartesian_prod(*map(torch.arange, wanted.shape)):
        block = weight[o, c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten()
        wanted[o, c, i, j] = PICKS[choice](block)
    torch.testing.assert_close(result.graph_module.get_parameter("dense.weight"), wanted.flatten(1))


def test_random_keeps_one_column_of_each_block_and_says_which():
    model = Ended(4, ENDS["flatten"])
    move = AddPool("relu", weights="random", seed=3)
    result = move(captured(model, 2, 3, 4, 4))
    index = result.origins["dense.weight"].index[1]
    assert torch.equal(result.program.graph_module.get_parameter("dense.weight"), model.dense.weight[:, index])
    channel, row, column = index // 16, index // 4 % 4, index % 4
    assert torch.equal(channel * 4 + row // 2 * 2 + column // 2, torch.arange(16))
    again = move(captured(model, 2, 3, 4, 4)).program
    assert torch.equal(again(images(2, 3, 4, 4)), result.program(images(2, 3, 4, 4)))
    other = AddPool("relu", weights="random", seed=4)(captured(model, 2, 3, 4, 4))
    assert not torch.equal(other.origins["dense.weight"].index[1], index)


def test_a_map_of_one_row_is_refused():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 5))
    assert reasons(AddPool("_1")(captured(model, 2, 3, 1, 8))) == [
        "nothing is left to pool: the map has 1 x 8 positions"
    ]


def test_a_later_pool_that_would_find_nothing_is_told():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 5))
    (reason,) = reasons(AddPool("_1")(captured(model, 2, 3, 2, 2)))
    assert reason.startswith("it cannot process the changed map")


def test_a_shortcut_around_the_pool_is_refused_also_where_it_would_broadcast():
    class Shortcut(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.b(torch.relu(self.a(x)))).mean((2, 3))

    (reason,) = reasons(AddPool("relu")(captured(Shortcut())))
    assert reason.startswith("it cannot process the changed map")
    (reason,) = reasons(AddPool("relu")(captured(Shortcut(), 2, 3, 2, 2)))
    assert reason == "a map with a single position would be broadcast"


def test_a_map_that_the_program_gives_out_keeps_its_shape():
    (reason,) = reasons(AddPool("relu")(program("TwoHeads")))
    assert reason == "it is an output of the program, and its shape would change"


def test_a_dense_layer_that_others_use_as_well_is_left_alone():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.dense = nn.Conv2d(3, 4, 1), nn.Linear(256, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.dense(torch.relu(self.conv(x)).flatten(1)) + self.dense(self.conv(x).flatten(1))

    assert reasons(AddPool("relu")(captured(Twice()))) == ["dense is called 2 times"]

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.other = nn.Conv2d(3, 4, 1), nn.Linear(256, 5), nn.Linear(256, 5)
            self.other.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.one(torch.relu(self.conv(x)).flatten(1)) + self.other(self.conv(x).flatten(1))

    assert reasons(AddPool("relu")(captured(Tied()))) == ["one.weight is other.weight as well"]


def test_position_embeddings_are_in_the_way():
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.places, self.head = nn.Conv2d(3, 4, 2, 2), nn.Parameter(images(16, 4)), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head((self.conv(x).flatten(2).transpose(1, 2) + self.places).mean(1))

    (reason,) = reasons(AddPool("conv")(captured(Tokens())))
    assert reason.startswith("it cannot process the changed map")


def test_values_that_are_no_map_are_refused_and_names_that_are_not_there_raise():
    start = program("FlattenLinear")
    assert reasons(AddPool("classifier_0")(start)) == ["it gives no feature map: (batch, channels, *positions)"]
    with pytest.raises(SpecError, match="features_3"):
        AddPool("nothing")(start)
    with pytest.raises(SpecError, match="it must be 'average' or 'max'"):
        AddPool("features_2", "min")(start)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="it must be 'structured', 'random'"):
        AddPool("features_2", weights="median")(start)  # type: ignore[arg-type]


def test_candidates_are_few_and_skip_what_is_inside_a_residual_branch():
    places = [move.after for move in AddPool.candidates(program("resnet18"))]
    assert places == [p for p in ("relu", "layer1_1_relu_1", "layer2_1_relu_1", "layer3_1_relu_1") for _ in "am"]


# What a trained network keeps (Table 4 in kind: average 89.1 % structured, 53.8 % random; max 13.4 %, 49.3 %).


@functools.cache
def digits() -> tuple[Program, Tensor, Tensor]:
    """Two convolutions and two dense layers, as in the paper's trial, trained on a thousand digits."""
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16, torch.tensor(data.target)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(),
            nn.Linear(8 * 64, 32), nn.ReLU(), nn.Linear(32, 10),
        )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(12):
        for batch in torch.randperm(1200, generator=generator).split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return capture(model.eval(), x[:8]), x[1200:], y[1200:]


def accuracy(move: AddPool | None) -> float:
    start, x, y = digits()
    model = start if move is None else move(start).program
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


@pytest.mark.parametrize("after", ["_1", "_3"])
def test_summed_weights_keep_far_more_accuracy_under_an_average_pool_than_one_of_each_block(after: str):
    before, kept = accuracy(None), accuracy(AddPool(after))
    random = sum(accuracy(AddPool(after, weights="random", seed=s)) for s in range(3)) / 3
    largest = accuracy(AddPool(after, weights="largest"))
    assert before > 0.9
    assert kept > random + 0.15
    assert kept > largest + 0.05


def test_what_fails_in_the_paper_for_max_pools_is_the_largest_signed_weight():
    """The text says the largest magnitude, the published code takes the maximum: worse than one at random."""
    signed = accuracy(AddPool("_3", "max", weights="maximum"))
    assert signed < accuracy(AddPool("_3", "max", weights="random")) - 0.1
    assert accuracy(AddPool("_3", "max", weights="largest")) > signed + 0.2
    assert accuracy(AddPool("_3", "max")) > signed + 0.4


def test_a_convolution_whose_channels_are_positions_is_left_alone():
    """A mixer's convolution along the channels: a sum over all positions is not what it would want."""

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Conv2d(3, 4, 1), nn.Conv1d(64, 5, 1), nn.Linear(20, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(torch.relu(self.stem(x)).flatten(2).transpose(1, 2)).flatten(1))

    start = captured(Mixer())
    assert reasons(AddPool("relu")(start)) == ["its inputs cannot be matched to channels"]
    assert {move.after for move in AddPool.candidates(start)} == {"mix"}


@pytest.mark.parametrize("message", ["", "too small"])
def test_an_assertion_about_the_size_is_an_obstacle(message: str):
    class Asserting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.body, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            torch._assert(x.shape[2] == 8, message)
            return self.head(torch.relu(self.body(x))).mean((2, 3))

    start = captured(Asserting())
    assert reasons(AddPool("relu")(start)) == [f"it cannot process the changed map: {message or 'AssertionError'}"]
    assert {move.after for move in AddPool.candidates(start)} == {"relu_1", "head"}


def test_a_global_mean_that_meets_the_pooled_map_again_stays_as_it_is():
    class Excited(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            return self.head((x * nn.functional.adaptive_avg_pool2d(x, 1)).mean((2, 3)))

    start = capture(Excited().eval(), torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert AddPool("conv")(start).changes
