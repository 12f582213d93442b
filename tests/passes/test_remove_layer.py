"""`remove-layer`: dense layers, convolution cells, residual blocks; what is left, and what is refused."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import SpecError
from fxsurgery.passes import Deepen, RemoveLayer
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, PassResult
from nonempty import nonempty
from programs import program
from zoo import lively

GENERATOR = torch.Generator().manual_seed(0)
VECTORS = torch.randn(5, 6, generator=GENERATOR)
IMAGES = torch.randn(4, 3, 6, 6, generator=GENERATOR)
CONSTANT = torch.randn(4, 3, 1, 1, generator=GENERATOR).expand(4, 3, 6, 6).contiguous()
"""Images of one color each."""


def captured(*layers: nn.Module, inputs: Tensor = VECTORS) -> Program:
    return capture(lively(nn.Sequential(*layers)).eval(), inputs)


def kinds(of: Program) -> list[str]:
    return [type(of.module(n)).__name__ for n in of.nodes if n.op == "call_module"]


def loss_goes_down(of: Program) -> bool:
    """Whether the program trains: in-place operations can break that, and nothing in eval mode shows it."""
    model = of.trainable_copy().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    losses = list[float]()
    for _ in range(5):
        optimizer.zero_grad()
        loss = model(*of.example_inputs).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-1] < losses[0]


# Dense.


@pytest.mark.parametrize("between", [(), (nn.Identity(),), (nn.Dropout(0.0), nn.Identity())])
def test_two_linear_layers_are_one_where_nothing_is_between(between: tuple[nn.Module, ...]):
    first, second = nn.Linear(6, 9), nn.Linear(9, 4)
    start = captured(first, *between, second)
    result = RemoveLayer("_0")(start)
    (merged,) = result.program.graph_module.children()
    assert result.effect is Effect.EXACT
    torch.testing.assert_close(merged.weight, second.weight @ first.weight)
    torch.testing.assert_close(merged.bias, second.weight @ first.bias + second.bias)
    assert relative_error(result.program(3 * VECTORS), start(3 * VECTORS)) < 1e-5


def test_activation_is_dropped_and_the_linear_part_stays():
    first, norm, second = nn.Linear(6, 9), nn.BatchNorm1d(9), nn.Linear(9, 4)
    start = captured(first, norm, nn.ReLU(), nn.PReLU(), nn.Dropout(), second)
    result = RemoveLayer("_0")(start)
    assert result.effect is Effect.LOSSY
    assert result.error is not None
    assert result.error < 1e-5
    assert kinds(result.program) == ["Linear"]
    assert relative_error(result.program(VECTORS), second(norm.eval()(first(VECTORS)))) < 1e-5
    assert relative_error(result.program(VECTORS), start(VECTORS)) > 0.1


@pytest.mark.parametrize("between", [nn.Dropout(0.3), nn.BatchNorm1d(9)])
def test_what_train_mode_would_notice_is_lossy(between: nn.Module):
    """Equal in eval mode, to rounding, and no more than that."""
    start = captured(nn.Linear(6, 9), between, nn.Linear(9, 4))
    result = RemoveLayer("_0")(start)
    assert result.effect is Effect.LOSSY
    assert relative_error(result.program(VECTORS), start(VECTORS)) < 1e-5
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trained = [of.trainable_copy().train()(VECTORS) for of in (result.program, start)]
    assert relative_error(*trained) > 0.1


class Dense(nn.Module):
    """A functional activation and dropout on sequences, (batch, steps, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(9, 7, bias=False), nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(F.relu(self.a(x)), 0.1, self.training)
        return self.c(F.gelu(self.b(x)))


def test_sequences_and_functional_dropout():
    sequences = torch.randn(2, 3, 6, generator=GENERATOR)
    model = lively(Dense()).eval()
    start = capture(model, sequences)
    result = RemoveLayer("a")(start)
    assert relative_error(result.program(sequences), model.c(F.gelu(model.b(model.a(sequences))))) < 1e-5
    once = RemoveLayer("b")(start).program
    wanted = model.c(model.b(F.relu(model.a(sequences))))
    assert relative_error(once(sequences), wanted) < 1e-5


def test_offset_goes_into_the_batch_norm_where_there_is_no_bias():
    first, second, norm = nn.Linear(6, 9), nn.Linear(9, 5, bias=False), nn.BatchNorm1d(5)
    start = captured(first, second, norm)
    result = RemoveLayer("_0")(start)
    merged, after = result.program.graph_module.children()
    assert result.effect is Effect.EXACT
    assert merged.bias is None
    torch.testing.assert_close(after.running_mean, norm.running_mean - second.weight @ first.bias)


class Repeated(nn.Module):
    """A layer that is called twice, then another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.relu(self.a(F.relu(self.b(F.relu(self.a(x)))))))


def test_module_that_others_call_stays_for_them():
    start = capture(lively(Repeated()).eval(), VECTORS)
    result = RemoveLayer("a")(start)
    calls = [str(n.target) for n in result.program.nodes if n.op == "call_module"]
    assert calls == ["b", "a", "c"]
    assert torch.equal(result.program.graph_module.a.weight, start.graph_module.a.weight)


def test_layer_whose_reader_is_called_twice_is_refused():
    result = RemoveLayer("b")(capture(lively(Repeated()).eval(), VECTORS))
    assert result.changes == 0
    assert [r.reason for r in result.refusals] == ["a is called 2 times"]


def test_tied_weights_are_left_tied():
    first, second, third = nn.Linear(6, 9), nn.Linear(9, 6), nn.Linear(6, 6)
    model = nn.Sequential(
        first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 6)
    )
    model[8].weight = second.weight
    result = RemoveLayer("_0")(capture(lively(model).eval(), VECTORS))
    assert result.changes == 0
    assert "weight is 8.weight as well" in result.refusals[0].reason


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = nn.Linear(6, 9), nn.Linear(9, 9), nn.Linear(9, 4)
        self.scale = nn.Parameter(torch.full((9,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return self.head(x + self.scale * self.a(x))


def test_a_tensor_that_only_the_block_read_goes_with_it():
    result = RemoveLayer("add")(capture(lively(Scaled()).eval(), VECTORS)).program
    assert {n.partition(".")[0] for n, _ in result.graph_module.named_parameters()} == {"stem", "head"}


def test_type_and_training_stay():
    model = lively(nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 4))).double().eval()
    model[2].requires_grad_(False)
    result = RemoveLayer("_0")(capture(model, VECTORS.double()))
    assert {(p.dtype, p.requires_grad) for p in result.program.graph_module.parameters()} == {(torch.float64, False)}


# Cells.


def test_cell_of_the_same_shape_is_stepped_over():
    first, last = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 2, 1)
    cell = nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True)
    result = RemoveLayer("_1")(captured(first, *cell, last, inputs=IMAGES))
    assert result.effect is Effect.LOSSY
    assert kinds(result.program) == ["Conv2d", "Conv2d"]
    assert relative_error(result.program(IMAGES), last(first(IMAGES))) < 1e-5


@pytest.mark.parametrize(
    ("cell", "reader"),
    [
        ((nn.Conv2d(3, 5, 3), nn.AvgPool2d(2), nn.BatchNorm2d(5)), (nn.Flatten(), nn.Linear(20, 4))),
        ((nn.Conv2d(3, 5, 3, 2, 1, padding_mode="replicate"), nn.BatchNorm2d(5)), (nn.Flatten(), nn.Linear(45, 4))),
        ((nn.Conv2d(3, 6, 1, groups=3, bias=False),), (nn.Conv2d(6, 4, 3), nn.Flatten())),
        ((nn.Conv2d(3, 5, 1), nn.MaxPool2d(3, 1, 1)), (nn.Conv2d(5, 4, 1, bias=False), nn.BatchNorm2d(4))),
        ((nn.Conv2d(3, 5, 3),), (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(5, 4))),
        ((nn.Conv2d(3, 5, 3), nn.MaxPool2d(2, 1, 1)), (nn.Conv2d(5, 4, 5), nn.Flatten())),
    ],
)
def test_affine_map_of_a_cell_goes_into_its_readers(cell: tuple[nn.Module, ...], reader: tuple[nn.Module, ...]):
    """On images of one color a cell without activation is `A x + a`: the outputs stay."""
    start = captured(*cell, *reader, inputs=CONSTANT)
    result = RemoveLayer("_0")(start)
    got, wanted = result.program(CONSTANT), start(CONSTANT)
    assert kinds(result.program) == [type(layer).__name__ for layer in reader]
    if got.dim() == 4:
        got, wanted = (x.mean((2, 3)) for x in (got, wanted))
    assert relative_error(got, wanted) < 1e-5


def test_point_convolution_before_a_global_mean_and_a_dense_layer_is_removed_exactly():
    result = RemoveLayer("b")(program("Grouped"))
    assert result.effect is Effect.EXACT
    assert "b" not in dict(result.program.graph_module.named_modules())


def test_cnn_becomes_a_dense_network_without_its_last_cell():
    """The paper's way from a CNN to an FFNN: the first dense layer reads the image itself."""
    once = RemoveLayer("cell2_0")(program("PooledLinear"))
    twice = RemoveLayer("cell1_0")(once.program)
    assert once.program.graph_module.dense1.in_features == 6 * 6 * 6
    assert kinds(twice.program) == ["Linear", "Linear", "Linear"]
    assert twice.program.graph_module.dense1.in_features == 3 * 12 * 12
    assert loss_goes_down(twice.program)


def test_every_sum_of_dense_weights_survives_a_pool_that_goes():
    """Positions share: what the first dense layer makes of a constant channel is what it was."""
    cell = nn.Conv2d(3, 3, 3, padding=1), nn.MaxPool2d(2), nn.ReLU()
    dense = nn.Linear(27, 4)
    result = RemoveLayer("_0")(captured(*cell, nn.Flatten(), dense, inputs=IMAGES))
    new = result.program.graph_module.get_submodule("4").weight
    torch.testing.assert_close(new.reshape(4, 3, 36).sum(2), dense.weight.reshape(4, 3, 9).sum(2))


def test_deepened_layer_goes_again():
    start = captured(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Conv2d(5, 2, 1), inputs=IMAGES)
    deeper = Deepen("_2")(start).program
    name = next(n.name for n in deeper.nodes if str(n.target) == "2_deeper")
    back = RemoveLayer(name)(deeper).program
    assert kinds(back) == kinds(start)
    assert relative_error(back(IMAGES), start(IMAGES)) < 1e-6


@pytest.mark.parametrize(
    ("name", "layer", "reason"),
    [
        ("Plain", "head", "returns its output"),
        ("TwoHeads", "mask", "returns its output"),
        ("Residual", "conv3", "size"),
        ("Residual", "add_1", "no identity shortcut"),
        ("Grouped", "a", "grouped convolution"),
        ("SharedConv", "stem", "called 2 times"),
        ("Attention", "qkv", "cannot process"),
        ("Attention", "norm1", "neither a call of a linear layer"),
    ],
)
def test_refusals_say_why(name: str, layer: str, reason: str):
    result = RemoveLayer(layer)(program(name))
    assert result.program is program(name)
    assert reason in result.refusals[0].reason


def test_unknown_node_is_an_error_that_names_the_layers():
    with pytest.raises(SpecError, match="body_0, body_4, head"):
        RemoveLayer("body")(program("Plain"))


# Blocks.


def removed(of: Program) -> list[PassResult]:
    """What each block's removal gives."""
    sums = [move for move in RemoveLayer.candidates(of) if move.layer.startswith("add")]
    return [move(of) for move in sums]


def test_block_is_the_identity_afterwards():
    start = program("Residual")
    (result,) = removed(start)
    model, x = start.graph_module, start.example_inputs[0]
    y = F.relu(model.stem(x))
    shortcut = model.get_submodule("project.1")(model.get_submodule("project.0")(y))
    y = F.relu(model.bn3(model.conv3(y)) + shortcut)
    assert result.effect is Effect.LOSSY
    assert relative_error(result.program(x), model.head(y.mean((2, 3)))) < 1e-5
    assert not {"conv1", "bn1", "conv2", "bn2"} & set(dict(result.program.graph_module.named_modules()))


def test_transformer_loses_attention_then_its_feed_forward_part():
    start = program("Attention")
    attention, feed_forward = removed(start)
    assert not {"norm1", "qkv", "proj"} & set(dict(attention.program.graph_module.named_modules()))
    assert not {"norm2", "fc1", "fc2"} & set(dict(feed_forward.program.graph_module.named_modules()))
    (both,) = removed(attention.program)
    assert kinds(both.program) == ["Conv2d", "LayerNorm", "Linear"]


class Block(nn.Module):
    """Two residual blocks, each with a rectifier after the sum that writes in place, as torchvision's do."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.head, self.relu, self.join = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.ReLU(True), join
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.stem(x))
        x = self.relu(self.join(self.bn1(self.conv1(x)), x))
        return self.head(self.relu(self.join(self.bn2(self.conv2(x)), x)))


def add_in_place(y: Tensor, x: Tensor) -> Tensor:
    y += x
    return y


JOINS = [lambda y, x: y + x, add_in_place, lambda y, x: y.add_(x), lambda y, x: torch.add(x, y)]


@pytest.mark.parametrize("join", JOINS)
def test_result_trains_where_the_next_operation_writes_in_place(join: Callable[[Tensor, Tensor], Tensor]):
    model = lively(Block(join)).eval()
    start = capture(model, IMAGES)
    results = removed(start)
    assert len(results) == 2
    for result in nonempty(results):
        assert loss_goes_down(result.program)
    x = F.relu(model.stem(IMAGES))
    wanted = model.head(F.relu(model.bn2(model.conv2(x)) + x))
    assert relative_error(results[0].program(IMAGES), wanted) < 1e-5


def test_function_that_writes_in_place_no_longer_overwrites_the_shortcut():
    def join(y: Tensor, x: Tensor) -> Tensor:
        return F.relu_(y + x) * x.mean()

    model = lively(Block(join)).eval()
    result = removed(capture(model, IMAGES))[0]
    x = F.relu(model.stem(IMAGES))
    x = F.relu(F.relu(x) * x.mean())
    x = F.relu(F.relu(model.bn2(model.conv2(x)) + x) * x.mean())
    assert relative_error(result.program(IMAGES), model.head(x)) < 1e-5
    assert loss_goes_down(result.program)


def test_block_that_gives_zero_is_removed_exactly():
    """As ResNets are often started: the last norm of each branch at weight 0. One step later it is worth something."""
    model = lively(Block(JOINS[0]))
    nn.init.zeros_(model.bn1.weight)
    nn.init.zeros_(model.bn1.bias)
    zero, other = removed(capture(model.eval(), IMAGES))
    assert zero.effect is Effect.EXACT
    assert other.effect is Effect.LOSSY


def test_every_block_of_a_resnet_goes():
    program_ = program("resnet18")
    results = removed(program_)
    assert len(results) == 5
    last = results[-1].program
    assert len(kinds(last)) < len(kinds(program_))
    assert loss_goes_down(last)


class Conditional(nn.Module):
    """`x + f(x, y)`: the block alone reads y."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x = self.g(x)
        return x + self.f(x * y)


class OneBlock(nn.Module):
    """Nothing but `x + f(x)`."""

    def __init__(self) -> None:
        super().__init__()
        self.f = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(x)


class Difference(nn.Module):
    """`f(x) - x`: without f, nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.g, self.h = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.g(x)
        return self.h(F.relu(self.f(x)) - x)


def test_value_is_not_subtracted_from_itself():
    result = RemoveLayer("f")(capture(Difference().eval(), VECTORS))
    assert result.changes == 0
    assert "which cancels out" in result.refusals[0].reason


def test_input_is_not_cut_off():
    result = RemoveLayer("add")(capture(Conditional().eval(), VECTORS, VECTORS))
    assert result.changes == 0
    assert "the input %y" in result.refusals[0].reason


def test_something_is_left_to_train():
    result = RemoveLayer("add")(capture(OneBlock().eval(), VECTORS))
    assert [r.reason for r in result.refusals] == ["no parameter would be left"]


class Towers(nn.Module):
    """Convolutions of other widths side by side, each of which changes what the next ones read."""

    def __init__(self, named_device: str | None) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 3, padding=1), nn.Conv2d(5, 6, 1)
        self.last, self.head, self.named_device = nn.Conv2d(10, 7, 1), nn.Linear(7 * 36, 2), named_device

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.last(torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)))
        if self.named_device is not None:
            x = x * torch.ones(1, device=self.named_device)
        return self.head(x.flatten(1))


def test_candidates_are_found_on_shapes_alone(monkeypatch: pytest.MonkeyPatch):
    """A run of the program for each layer, twice, takes minutes in a deep network of branches."""
    runs, call = list[int](), nn.Conv2d.forward
    start = capture(lively(Towers(None)).eval(), IMAGES)
    found = list(RemoveLayer.candidates(start))
    again = capture(lively(Towers(None)).eval(), IMAGES)
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: (runs.append(x.device.type != "meta"), call(self, x))[1])
    assert list(RemoveLayer.candidates(again)) == found
    assert sum(runs) <= 8  # once, for the shapes of what the structure is read from
    assert {move.layer for move in found} == {"stem", "left", "right", "last"}
    assert all(move(start).changes for move in nonempty(found))


def test_candidates_are_tried_among_the_nodes_that_are_told():
    start = capture(lively(Towers(None)).eval(), IMAGES)
    assert [move.layer for move in RemoveLayer.candidates(start, {"left", "last", "flatten"})] == ["left", "last"]


def test_a_program_that_names_a_device_has_the_same_candidates():
    moves = [list(RemoveLayer.candidates(capture(lively(Towers(d)).eval(), IMAGES))) for d in (None, "cpu")]
    assert [move.layer for move in moves[0]] == ["stem", "left", "right", "last"]
    assert moves[1] == moves[0]


def test_what_shapes_do_not_tell_is_run():
    """A transposed convolution takes any channels on meta tensors, and an index any length."""

    class Unchecked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.up = nn.Conv2d(3, 5, 1), nn.ConvTranspose2d(5, 4, 1)
            self.b, self.head = nn.Conv2d(4, 6, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.b(F.relu(self.up(F.relu(self.a(x))))))
            return self.head(x.index_select(1, torch.tensor([0, 3, 5])))

    start = capture(lively(Unchecked()).eval(), IMAGES)
    assert not list(RemoveLayer.candidates(start))
    assert len(RemoveLayer("a")(start).refusals) == len(RemoveLayer("b")(start).refusals) == 1


class PaddedChannels(nn.Module):
    """A shortcut of zero-padded channels, as in CIFAR's ResNets (option A)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(torch.relu(self.first(x)), (0, 0, 0, 0, 2, 2))
        return self.head(torch.relu(self.second(x)).mean((2, 3)))


def test_padded_channels_are_no_place_to_remove_before():
    start = capture(lively(PaddedChannels()).eval(), IMAGES)
    assert [move.layer for move in RemoveLayer.candidates(start)] == ["second"]
    refused = RemoveLayer("first")(start)
    assert refused.program is start
    assert refused.refusals


def test_a_layer_whose_weight_a_hook_makes_takes_nothing_over():
    hooked = nn.utils.spectral_norm(nn.Conv2d(8, 4, 3, padding=1))
    start = captured(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), hooked, nn.ReLU(), nn.Conv2d(4, 2, 1), inputs=IMAGES)
    [move] = RemoveLayer.candidates(start)
    assert move == RemoveLayer("_2")
    assert move(start).changes
    assert "computed from other tensors" in RemoveLayer("_0")(start).refusals[0].reason
