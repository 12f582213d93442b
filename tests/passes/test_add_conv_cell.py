"""`add-conv-cell`: how near to the identity it starts, in both modes, and a CNN out of a feed-forward network."""

import pytest
import torch
from torch import Tensor, nn

from fxsurgery.capture import capture
from fxsurgery.comparison import relative_error
from fxsurgery.errors import SpecError
from fxsurgery.passes import AddConvCell, AddPool
from fxsurgery.program import Program
from fxsurgery.surgery import Effect, PassResult
from nonempty import nonempty
from programs import program
from zoo import lively


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def captured(model: nn.Module, *shape: int) -> Program:
    return capture(lively(model).eval(), images(*(shape or (4, 3, 8, 8))))


def plain(size: int = 8) -> Program:
    count = 4 * size * size
    return captured(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(count, 5)), 4, 3, size, size)


def reasons(result: PassResult) -> list[str]:
    assert result.changes == 0
    return [r.reason for r in result.refusals]


def kinds(of: Program) -> list[str]:
    return [type(of.module(n)).__name__ for n in of.nodes if n.op == "call_module"]


def test_the_cell_is_convolution_pool_norm_activation_in_this_order():
    result = AddConvCell("_1")(plain()).program
    assert kinds(result) == [
        "Conv2d", "ReLU", "Conv2d", "AvgPool2d", "BatchNorm2d", "ReLU", "Flatten", "Linear",
    ]  # fmt: skip
    assert "MaxPool2d" in kinds(AddConvCell("_1", kind="max")(plain()).program)


@pytest.mark.parametrize(("size", "ceil"), [(8, False), (7, False), (7, True)])
@pytest.mark.parametrize("kind", ["average", "max"])
def test_after_a_relu_it_starts_as_the_pool_alone_does(kind: str, size: int, ceil: bool):
    start = plain(size)
    result = AddConvCell("_1", kind=kind, ceil=ceil)(start)
    assert result.effect is Effect.LOSSY
    x = images(6, 3, size, size, seed=1)
    assert relative_error(result.program(x), AddPool("_1", kind, ceil)(start).program(x)) < 1e-5


def test_in_train_mode_it_starts_there_too():
    """The norm undoes the statistics of the examples, up to sqrt(n / (n - 1)) for n values a channel."""
    start = plain()
    x = start.example_inputs[0]
    cell = AddConvCell("_1")(start).program.trainable_copy().train()
    assert relative_error(cell(x), AddPool("_1")(start).program(x)) < 2e-2
    usual = AddConvCell("_1")(start).program.trainable_copy().train()
    norm = next(m for m in usual.modules() if isinstance(m, nn.BatchNorm2d))
    norm.reset_parameters()
    assert relative_error(usual(x), AddPool("_1")(start).program(x)) > 0.3


@pytest.mark.parametrize("before", [nn.ReLU(), nn.Sigmoid(), nn.ReLU6()])
def test_without_a_pool_it_is_exact_where_nothing_is_negative(before: nn.Module):
    start = captured(nn.Sequential(nn.Conv2d(3, 4, 1), before, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(64, 5)))
    for after in ("_1", "_2"):
        result = AddConvCell(after, kind="none")(start)
        assert result.effect is Effect.EXACT
        assert result.error is not None
        assert result.error < 1e-5


@pytest.mark.parametrize("before", [nn.LeakyReLU(), nn.Tanh(), nn.Identity()])
def test_without_a_pool_it_is_lossy_where_something_may_be(before: nn.Module):
    start = captured(nn.Sequential(nn.Conv2d(3, 4, 1), before, nn.Flatten(), nn.Linear(256, 5)))
    assert AddConvCell("_1", kind="none")(start).effect is Effect.LOSSY


def test_a_norm_before_it_is_measured_in_train_mode():
    """Its running statistics are not those of the batch: in train mode the cell sees what they give there."""
    body = (nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    start = captured(nn.Sequential(*body, nn.Flatten(), nn.Linear(256, 5)))
    x = start.example_inputs[0]
    before, after = (p.trainable_copy().train() for p in (start, AddConvCell("_2", kind="none")(start).program))
    assert relative_error(after(x), before(x)) < 1e-2


@pytest.mark.parametrize("reader", ["dense", "conv"])
def test_more_channels_start_with_no_say_and_learn(reader: str):
    tail = [nn.Conv2d(4, 6, 3)] if reader == "conv" else []
    count = 6 * 36 if tail else 256
    start = captured(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), *tail, nn.Flatten(), nn.Linear(count, 5)))
    result = AddConvCell("_1", channels=7, kind="none")(start).program
    x = images(6, 3, 8, 8, seed=1)
    assert relative_error(result(x), start(x)) < 1e-5
    model = result.trainable_copy().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    taps = next(p for n, p in model.named_parameters() if "cell_conv" in n)
    assert taps.shape == (7, 4, 3, 3)
    assert taps.grad is not None
    assert taps.grad.flatten(1).abs().sum(1).gt(0).all()


def test_fewer_channels_keep_the_first():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))
    start = captured(model)
    result = AddConvCell("_1", channels=2, kind="none")(start).program
    x = images(6, 3, 8, 8, seed=1)
    kept = model[:2](x) * torch.tensor([1.0, 1.0, 0.0, 0.0])[:, None, None]
    assert relative_error(result(x), model[2:](kept)) < 1e-5


def test_the_random_filters_follow_the_seed():
    weights = [
        AddConvCell("_1", channels=6, seed=seed)(plain()).program.graph_module.get_parameter("1_cell_conv.weight")
        for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_feed_forward_network_on_images_becomes_a_cnn():
    model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 20), nn.ReLU(), nn.Linear(20, 10))
    start = captured(model, 4, 1, 28, 28)
    moves = list(AddConvCell.candidates(start))
    assert {(m.after, m.kind) for m in moves} == {("input_1", k) for k in ("average", "max", "none")}
    result = AddConvCell("input_1", channels=3)(start).program
    assert kinds(result) == ["Conv2d", "AvgPool2d", "BatchNorm2d", "ReLU", "Flatten", "Linear", "ReLU", "Linear"]
    assert result.graph_module.get_parameter("1.weight").shape == (20, 3 * 14 * 14)
    again = AddConvCell(next(AddConvCell.candidates(result)).after)(result).program
    assert kinds(again).count("Conv2d") == 2


def test_lines_and_volumes_get_cells_of_their_own():
    for conv, name, shape in ((nn.Conv1d, "Conv1d", (4, 3, 8)), (nn.Conv3d, "Conv3d", (4, 3, 4, 4, 4))):
        count = 4 * torch.Size(shape[2:]).numel()
        start = captured(nn.Sequential(conv(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(count, 5)), *shape)
        assert kinds(AddConvCell("_1")(start).program).count(name) == 2
        assert AddConvCell("_1", kind="none")(start).effect is Effect.EXACT


def test_new_parameters_are_as_those_that_are_there():
    model = lively(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5))).eval().double()
    result = AddConvCell("_1")(capture(model.requires_grad_(False), images(4, 3, 8, 8).double())).program
    assert {(p.dtype, p.requires_grad) for p in result.graph_module.parameters()} == {(torch.float64, False)}


def test_degenerate_maps_are_refused():
    assert reasons(AddConvCell("_1")(plain(1))) == ["nothing is left to pool: the map has 1 x 1 positions"]
    single = captured(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)), 1, 3, 2, 2)
    (reason,) = reasons(AddConvCell("_1")(single))
    assert reason == "no statistics for a batch norm: the example inputs give one value per channel"


def test_other_channels_stop_at_a_norm_or_a_group():
    for reader in (nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=4, padding=1)):
        start = captured(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), reader, nn.Flatten(), nn.Linear(256, 5)))
        assert len(reasons(AddConvCell("_1", channels=6, kind="none")(start))) == 1


def test_what_has_no_meaning_raises():
    start = program("FlattenLinear")
    with pytest.raises(SpecError, match="features_2"):
        AddConvCell("nothing")(start)
    with pytest.raises(SpecError, match="channels=0: it must be at least 1"):
        AddConvCell("features_2", channels=0)(start)
    with pytest.raises(SpecError, match="'max' or 'none'"):
        AddConvCell("features_2", kind="min")(start)  # type: ignore[arg-type]
    assert reasons(AddConvCell("classifier_0")(start)) == ["it gives no feature map: (batch, channels, *positions)"]


def test_a_cell_trains_behind_a_frozen_stem_and_is_frozen_in_a_frozen_model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)).eval()
    model[0].requires_grad_(False)
    cell = AddConvCell("_1")(capture(model, torch.randn(4, 3, 8, 8))).program.graph_module
    assert all(nonempty(p.requires_grad for n, p in cell.named_parameters() if "cell" in n))
    frozen = AddConvCell("_1")(capture(model.requires_grad_(False), torch.randn(4, 3, 8, 8))).program.graph_module
    assert not any(p.requires_grad for p in nonempty(frozen.parameters()))


def cells(count: int, size: int) -> nn.Module:
    """ECToNAS's: an average pool whose last window may be smaller, between convolution and norm."""
    parts, inner = list[nn.Module](), 1
    for outer in range(3, 3 + count):
        pool = nn.AvgPool2d(2, ceil_mode=True)
        parts += [nn.Conv2d(inner, outer, 3, padding=1), pool, nn.BatchNorm2d(outer), nn.ReLU()]
        inner, size = outer, -(-size // 2)
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(inner * size**2, 5))


@pytest.mark.parametrize("size", [6, 9, 12])
def test_candidates_name_every_cell_if_asked_to_and_the_map_may_come_down_to_one_position_between(size: int):
    start = captured(cells(3, size), 4, 1, size, size)
    found = [m for m in AddConvCell.candidates(start, most=9) if m.kind == "average"]
    assert [m.after for m in found] == [f"_{4 * n - 1}" for n in (1, 2, 3)][: len(found)]
    assert len(found) == (2 if size == 6 else 3)
    assert len({m.after for m in AddConvCell.candidates(start, most=1)}) == 1
    for move in nonempty(found):
        result = move(start)
        assert result.changes
        assert AddPool(move.after, "average", move.ceil)(start).changes
        assert result.program(images(5, 1, size, size)).shape == (5, 5)


def test_names_stay_short():
    start = captured(cells(1, 32), 2, 1, 32, 32)
    for _ in range(4):
        start = AddConvCell(next(m.after for m in reversed(list(AddConvCell.candidates(start)))))(start).program
    names = [str(n.target) for n in start.nodes if n.op == "call_module"]
    assert names[4:8] == ["3_cell_conv", "3_cell_pool", "3_cell_norm", "3_cell_act"]
    assert names[-3] == "3_cell_act_4"
