"""What the structure offers and the model, for what else it computes of its sizes, cannot lose."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import fxsurgery
from fxsurgery import Budget, Prune, StructureError
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.passes import InsertGates, PruneChannels, Widen
from fxsurgery.rewriting.removable import unremovable
from fxsurgery.searchers.common.widths import pruned, space
from nonempty import nonempty
from programs import program
from zoo import ZOO


def group_std(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    torch._assert(channels % groups == 0, "")
    parts = x.reshape(batch, groups, channels // groups, height, width)
    std = parts.var(dim=(2, 3, 4), unbiased=False, keepdim=True).add(1e-5).sqrt()
    return std.expand(parts.shape).reshape(batch, channels, height, width)


class EvoNorm(nn.Module):
    """S0, with the check of its sizes that published code has."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.weight, self.bias, self.v = (nn.Parameter(torch.rand(width) + 0.5) for _ in range(3))
        self.groups = groups

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scaled = x * (x * self.v.view(shape)).sigmoid() / group_std(x, self.groups)
        return scaled * self.weight.view(shape) + self.bias.view(shape)


class Slices(nn.Module):
    """FasterNet's partial convolution: it writes into the first channels of a copy."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.part, self.out = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Conv2d(16, 5, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x.clone()
        y[:, :4] = self.part(x[:, :4])
        return self.out(y.relu())


class Start(nn.Module):
    """StyleGAN2: a learned start, repeated for the batch, under a convolution with as many groups as samples."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.style = nn.Parameter(torch.randn(1, 16, 4, 4)), nn.Linear(8, 16)
        self.weight, self.rgb = nn.Parameter(torch.randn(12, 16, 3, 3)), nn.Conv2d(12, 3, 1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.start.repeat(z.shape[0], 1, 1, 1)
        b, c, h, w = x.shape
        k = self.weight * self.style(z).view(b, 1, c, 1, 1)
        mixed = F.conv2d(x.reshape(1, b * c, h, w), k.view(b * 12, c, 3, 3), padding=1, groups=b)
        return self.rgb(mixed.view(b, 12, h, w))


def seeded(build: type[nn.Module], *args: object) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args).eval()


def evo() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 16, 3), EvoNorm(16, 4), nn.Conv2d(16, 24, 3), EvoNorm(24, 8), nn.Conv2d(24, 4, 1)
        ).eval()


IMAGE = torch.randn(2, 3, 10, 10, generator=torch.Generator().manual_seed(1))
STYLES = torch.randn(4, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("name", ZOO)
def test_everything_of_the_zoo_can_go(name: str):
    assert not unremovable(program(name))


def test_a_width_that_an_assertion_holds_is_not_offered_and_named():
    found = fxsurgery.inspect(evo(), IMAGE)
    assert [width.name for width in found.widths] == ["0"]
    [note] = found.notes
    assert note.startswith("2 keeps its width, because the model fails without one of its units: AssertionError")
    for count in range(1, 4):
        result = PruneChannels((("0", tuple(range(count))),))(found.program)
        assert result.error is not None
        assert result.error < 1e-4


def test_a_width_that_does_not_run_is_refused_by_the_pass_and_the_search():
    start = capture(evo(), IMAGE)
    result = PruneChannels((("2", (0, 1)),))(start)
    assert result.program is start
    assert "the smaller model would not run, or could not be verified: AssertionError" in result.refusals[-1].reason
    keep = structure(start).mask(structure(start).named("2").units[:2])
    with pytest.raises(StructureError, match="the widths chosen cannot be cut: the smaller model would not run"):
        pruned(start, keep)
    assert [choice.group.name for choice in space(start, align=1, exact=False).choices] == ["0"]
    assert {name for move in Widen.candidates(start) for name, _ in move.add} == {"0"}


def test_a_search_shrinks_what_it_can():
    config = Prune(align=1, finetune_epochs=0, fewest_steps=0)
    result = fxsurgery.optimize(
        evo(), example_inputs=(IMAGE,), budget=Budget(macs=0.8), config=config, verbose=False, device="cpu"
    )
    assert result.model.get_submodule("0").out_channels < 16
    assert result.model.get_submodule("2").out_channels == 24
    stuck = capture(nn.Sequential(*list(evo())[2:]), torch.randn(2, 16, 6, 6))
    with pytest.raises(StructureError, match=r"no channel can be removed: 0 keeps its width, because the model fails"):
        space(stuck, align=1)


@pytest.mark.parametrize(("build", "inputs"), [(Slices, IMAGE), (Start, STYLES)])
def test_what_inspect_offers_can_go(build: type[nn.Module], inputs: Tensor):
    found = fxsurgery.inspect(seeded(build), inputs)
    assert len(found.widths) == 2
    for width in nonempty(found.widths):
        for count in (1, width.units // 2):
            result = PruneChannels(((width.name, tuple(range(count))),))(found.program)
            assert result.error is not None
            assert result.error < 1e-4


def test_channels_that_are_written_into_shrink_with_what_is_written():
    model = seeded(Slices)
    result = fxsurgery.optimize(
        model, method="prune", example_inputs=(IMAGE,), budget=Budget(macs=0.6), verbose=False, device="cpu",
        config=Prune(align=1, finetune_epochs=0, fewest_steps=0),
    )  # fmt: skip
    assert result.cost[1].params < result.cost[0].params
    assert result.model(IMAGE[:1]).shape == (1, 5, 10, 10)


def test_no_gate_where_the_batch_lies_in_the_channels():
    start = capture(seeded(Start), STYLES)
    for move in nonempty(InsertGates.candidates(start)):
        assert move(start).changes
