"""Structure analysis: which channels are one, what may go, and why the rest may not."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.passes.prune_channels import PruneChannels
from nonempty import nonempty
from programs import program


def sizes(model: nn.Module, *inputs: Tensor) -> dict[str, int]:
    return {g.name: len(g.units) for g in structure(capture(model.eval(), inputs)).groups}


IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class Shortcut(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.body(x).relu())


def test_residual_sum_ties_its_producers():
    groups = structure(capture(Shortcut().eval(), IMAGE)).groups
    assert [(g.name, g.producers, len(g.units)) for g in groups] == [("stem", ("stem", "body"), 8)]


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.cat([self.a(x), self.b(x)], 1))


def test_concatenated_channels_stay_apart():
    assert sizes(Concat(), IMAGE) == {"a": 4, "b": 6}


def test_flatten_ties_a_channel_to_all_its_positions():
    facts = structure(program("FlattenLinear"))
    flat = facts.tensors["classifier.0.weight"][1]
    units, counts = np.unique(flat, return_counts=True)
    assert (len(units), set(counts.tolist())) == (6, {9})
    assert 0 not in units


class Depthwise(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.dw, self.bn = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, groups=6), nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.bn(self.dw(self.up(x))))


def test_depthwise_conv_passes_channels_through():
    facts = structure(capture(Depthwise().eval(), IMAGE))
    [group] = facts.groups
    members = {name for name, dims in facts.tensors.items() for ids in dims.values() if set(ids) & set(group.units)}
    assert members == {
        "up.weight", "up.bias", "dw.weight", "dw.bias", "down.weight",
        "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var",
    }  # fmt: skip


def test_conv_on_a_single_channel_is_no_depthwise_conv():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 4, 3))
    assert sizes(model, IMAGE[:, :1]) == {"0": 8}


@pytest.mark.parametrize(("groups", "units"), [(2, 4), (4, 4), (8, 8)])
def test_grouped_conv_loses_whole_groups_or_the_same_channel_of_each(groups: int, units: int):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=groups), nn.Conv2d(8, 4, 1))
    assert sizes(model, IMAGE)["0"] == units


class Shuffle(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.b(x)


def test_shuffle_ties_the_channels_that_are_dealt_together():
    assert sizes(Shuffle(), IMAGE) == {"a": 6}
    module = nn.Sequential(nn.Conv2d(3, 12, 1), nn.ChannelShuffle(2), nn.Conv2d(12, 5, 1))
    assert sizes(module, IMAGE) == {"0": 6}


def test_the_output_is_frozen_and_said():
    facts = structure(capture(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), IMAGE))
    assert not facts.groups
    assert ("the model's output", 4) in {(f.op, f.count) for f in facts.freezes}


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.renorm(self.a(x), 2, 2, 1.0))


def test_unknown_operation_freezes_its_inputs_and_is_named():
    facts = structure(capture(Unknown().eval(), IMAGE))
    assert not facts.groups
    assert facts.unknown == {"renorm": ("renorm",)}


class SizeAsNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.b(x * x.size(1) ** -0.5)


def test_a_width_used_as_a_number_freezes_it():
    facts = structure(capture(SizeAsNumber().eval(), IMAGE))
    assert not facts.groups
    assert "shape used as a number" in {f.op for f in facts.freezes}


class ChannelMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x).mean(1)


def test_a_mean_over_channels_is_inexact_and_not_gateable():
    facts = structure(capture(ChannelMean().eval(), IMAGE))
    [group] = facts.groups
    assert set(nonempty(group.units.tolist())) <= facts.inexact & facts.ungateable
    assert not facts.removable(group)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1)
        self.b2 = nn.Conv2d(4, 4, 1)
        self.b2.weight = self.b.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b2(self.b(self.a(x))))


def test_tied_weights_need_no_rule():
    assert sizes(Tied(), IMAGE) == {"a": 4}


@pytest.mark.parametrize(
    ("name", "groups", "units"),
    [
        ("resnet18", 12, 2880),
        ("mobilenet_v2", 25, 9128),
        ("densenet121", 120, 10240),
        ("vgg16_bn", 15, 12416),
        ("inception_v3", 94, 17216),
    ],
)
@pytest.mark.slow
def test_known_group_counts_of_real_models(name: str, groups: int, units: int):
    found = structure(program(name)).groups
    assert (len(found), sum(len(g.units) for g in found)) == (groups, units)


@pytest.mark.parametrize("named", [False, True], ids=["traced", "recorded"])
def test_rows_of_a_table_that_longer_inputs_need_are_not_unused(named):
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(30, 8), nn.Linear(8, 4)
            self.table = nn.Parameter(torch.randn(1, 40, 8))
            self.register_buffer("scale", torch.rand(40, 1))

        def forward(self, given):
            ids = given["ids"] if named else given
            n = ids.shape[1]
            return self.head((self.embed(ids) + self.table[:, :n]) * self.scale.narrow(0, 0, n))

    ids = torch.randint(0, 30, (2, 9))
    found = structure(capture(Positions().eval(), {"ids": ids} if named else ids))
    assert [(group.name, len(group.units)) for group in found.groups] == [("embed", 8)]


@pytest.mark.parametrize("dims", [(1,), (2, 3), (1, 2)])
def test_what_was_flipped_can_be_cut(dims):
    class Flipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.last(self.first(x).flip(dims)[:, :, ::2].relu())

    torch.manual_seed(0)
    start = capture(Flipped().eval(), torch.randn(2, 3, 6, 6))
    group = next(g for g in structure(start).groups if len(g.units) == 8)
    result = PruneChannels(((group.name, (0, 3)),))(start)
    assert result.error is not None
    assert result.error <= 1e-5
