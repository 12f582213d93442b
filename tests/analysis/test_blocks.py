"""`identity_blocks`: which residual sums are found, and what their branches are made of."""

import operator
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.blocks import IdentityBlock, gives_zero, identity_blocks
from fxsurgery.capture import capture
from fxsurgery.program import Program
from nonempty import nonempty
from programs import program
from zoo import ZOO, lively

IMAGES = torch.linspace(-1, 1, 2 * 4 * 6 * 6).reshape(2, 4, 6, 6)


class Sum(nn.Module):
    """A stem, then `join(x, f(x))`, then a head."""

    def __init__(self, join: Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]) -> None:
        super().__init__()
        self.stem, self.f, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.drop, self.join = nn.Dropout(), join

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.join(self.stem(x), self.f))


def of(join: Callable[..., Tensor]) -> tuple[Program, tuple[IdentityBlock, ...]]:
    found = capture(lively(Sum(join)).eval(), IMAGES)
    return found, identity_blocks(found)


def folded(x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
    """A size of the branch's is read that nothing uses, as attention layers do."""
    y = f(x)
    batch, channels, height, _width = y.shape
    return x + y.reshape(batch, channels, -1).reshape(batch, channels, height, 6)


def test_a_size_that_nothing_uses_hides_no_block():
    found, (block,) = of(folded)
    assert any(not n.users for n in found.nodes if n.op != "output")
    assert "f" in inner(block)


def inner(block: IdentityBlock) -> list[str]:
    return [n.name for n in block.inner]


@pytest.mark.parametrize(
    "join",
    [
        lambda x, f: x + f(x),
        lambda x, f: f(x) + x,
        lambda x, f: torch.add(x, f(x)),
        lambda x, f: torch.add(x, f(x), alpha=0.5),
        lambda x, f: torch.add(input=x, other=f(x)),
        lambda x, f: operator.iadd(f(x), x),
        lambda x, f: x.add(f(x)),
        lambda x, f: f(x).add_(x),
        lambda x, f: x.clone().add_(f(x)),
        lambda x, f: F.dropout(x, training=False) + f(x),
    ],
)
def test_sums_are_found_however_they_are_written(join: Callable[..., Tensor]):
    found, (block,) = of(join)
    assert inner(block) == ["f"]
    assert "stem" in {n.name for n in block.reads}
    assert block.sum in found.nodes


@pytest.mark.parametrize(
    "join",
    [
        lambda x, f: torch.add(f(x), x, alpha=2),
        lambda x, f: f(x) + 2 * x,
        lambda x, f: F.relu(x) + f(x),
        lambda x, f: f(x + x),
        lambda x, f: f(x) + torch.sigmoid(x),
        lambda x, f: x.mean(1, keepdim=True) + f(x),
        lambda x, f: f(x) + 1,
        lambda x, f: x - f(x),
        lambda x, f: x + f(x.relu_()),
    ],
)
def test_what_is_no_identity_shortcut_is_not(join: Callable[..., Tensor]):
    assert of(join)[1] == ()


def test_branch_that_is_read_elsewhere_is_none():
    def join(x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        y = f(x)
        return (x + y) * y

    assert of(join)[1] == ()


def test_whole_branch_is_found_through_gates_and_writes():
    def join(x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        mask = torch.ones_like(x)
        mask[:, :2] = 0
        y = f(x) * mask
        return x + y * torch.sigmoid(y.mean((2, 3), keepdim=True))

    found, (block,) = of(join)
    between = [n for n in found.nodes if n.name not in {"x", "stem", "head", "output", block.sum.name}]
    assert list(block.inner) == nonempty(n for n in between if n.op != "placeholder")
    assert block.branch is block.inner[-1]


def test_parallel_branches_are_blocks_each():
    def join(x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        return x + f(x) + f(2 * x)

    _, blocks = of(join)
    assert [inner(b) for b in blocks] == [["f"], ["mul", "f_1"]]
    assert blocks[1].skip is blocks[0].sum


def test_other_values_that_a_branch_reads_are_told():
    def join(x: Tensor, f: Callable[[Tensor], Tensor]) -> Tensor:
        y = f(x)
        x = x + f(x * y)
        return x * y

    _, (block,) = of(join)
    assert [n.name for n in block.reads] == ["stem", "f"]


@pytest.mark.parametrize(
    ("name", "sums"),
    [("Residual", ["add"]), ("InvertedResidual", ["add"]), ("Attention", ["add", "add_1"]), ("Plain", [])],
)
def test_blocks_of_the_zoo(name: str, sums: list[str]):
    assert [b.sum.name for b in identity_blocks(program(name))] == sums


def test_inner_nodes_serve_the_sum_alone():
    for block in nonempty(block for name in ZOO for block in identity_blocks(program(name))):
        own = {*block.inner, block.sum}
        assert all(own.issuperset(n.users) for n in nonempty(block.inner))


@pytest.mark.parametrize(
    ("join", "wanted"),
    [
        (lambda x, f: x + f(x), False),
        (lambda x, f: x + f(x) * torch.zeros(1), True),
        (lambda x, f: x + F.relu(f(x) * torch.zeros(4, 1, 1)).transpose(2, 3), True),
        (lambda x, f: x + torch.sigmoid(f(x) * torch.zeros(1)), False),
        (lambda x, f: x + F.alpha_dropout(f(x), training=False), False),
    ],
)
def test_branches_that_give_zero(join: Callable[..., Tensor], wanted: bool):
    found, (block,) = of(join)
    assert gives_zero(found, block.branch) is wanted


@pytest.mark.parametrize(("weight", "bias", "wanted"), [(0, 0, True), (0, 1, False), (1, 0, False)])
def test_norm_gives_zero_by_weight_and_bias(weight: float, bias: float, wanted: bool):
    model = Sum(lambda x, f: x + f(x))
    model.f = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    nn.init.constant_(model.f[1].weight, weight)
    nn.init.constant_(model.f[1].bias, bias)
    found = capture(model.eval(), IMAGES)
    (block,) = identity_blocks(found)
    assert gives_zero(found, block.branch) is wanted
