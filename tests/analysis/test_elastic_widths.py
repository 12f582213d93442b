"""Elastic widths: they never cut anything off, and keep what matters most."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from fxsurgery.analysis.elastic_widths import consumed_l1, residual_streams, width_choices
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.program import Program
from programs import program
from zoo import ZOO

IMAGE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def built(*layers: nn.Module, image: Tensor = IMAGE) -> Program:
    return capture(nn.Sequential(*layers).eval(), image)


def norms_of(start: Program, group: str) -> list[float]:
    found = structure(start).group(group)
    assert found is not None
    return consumed_l1(start)[found.units].tolist()


@pytest.mark.parametrize(
    ("consumer", "dims"), [(nn.Conv2d(6, 4, 3), (0, 2, 3)), (nn.ConvTranspose2d(6, 4, 3), (1, 2, 3))]
)
def test_importance_is_what_the_next_layer_weighs_a_unit_with(consumer: nn.Module, dims: tuple[int, ...]):
    start = built(nn.Conv2d(3, 6, 1), nn.ReLU(), consumer, nn.Conv2d(4, 2, 1))
    wanted = consumer.weight.detach().abs().sum(dims)
    assert norms_of(start, "0") == pytest.approx(wanted.tolist(), rel=1e-5)


def test_importance_under_a_grouped_conv_is_that_of_its_own_group():
    grouped = nn.Conv2d(6, 4, 3, groups=2)
    start = built(nn.Conv2d(3, 6, 1), nn.ReLU(), grouped, nn.Conv2d(4, 2, 1))
    weight, ids = grouped.weight.detach(), structure(start).values["_0"].planes[0].ravel()
    wanted = dict.fromkeys(ids.tolist(), 0.0)
    for channel, unit in enumerate(ids.tolist()):  # channels 0 to 2 are read by the outputs 0 and 1 alone
        group, place = divmod(channel, 3)
        wanted[unit] += weight[2 * group : 2 * group + 2, place].abs().sum().item()
    wanted.pop(0, None)
    got = consumed_l1(start)
    assert {unit: pytest.approx(got[unit], rel=1e-5) for unit in wanted} == wanted
    assert wanted


def test_importance_adds_up_over_all_consumers():
    class Forked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3), nn.Linear(6, 3)
            self.filters = nn.Parameter(torch.randn(2, 6, 1, 1))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            x = F.relu(self.stem(x))
            return self.left(x), self.right(x.mean((2, 3))), F.conv2d(x, self.filters)

    model = Forked().eval()
    with torch.no_grad():
        wanted = model.left.weight.abs().sum((0, 2, 3)) + model.right.weight.abs().sum(0)
        wanted += model.filters.abs().sum((0, 2, 3))
    assert norms_of(capture(model, IMAGE), "stem") == pytest.approx(wanted.tolist(), rel=1e-5)


@pytest.mark.parametrize("name", ZOO)
def test_the_least_widths_together_leave_something_everywhere(name: str):
    start = program(name)
    choices, facts = width_choices(start, (0.01, 1.0), 1), structure(start)
    assert choices
    keep = facts.mask(np.concatenate([c.order[c.counts[0] :] for c in choices]))
    assert facts.empty_dims(keep) == []


def test_both_halves_of_a_split_keep_a_unit():
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.stem(x).chunk(2, 1)
            return self.left(left) + self.right(right)

    model = Split().eval()
    with torch.no_grad():
        model.left.weight *= 100  # by importance alone, all of the right half would go
    start = capture(model, IMAGE)
    facts, choices = structure(start), width_choices(start, (0.01,), 1)
    assert sum(c.counts[0] for c in choices) == 2
    assert facts.empty_dims(facts.mask(np.concatenate([c.order[c.counts[0] :] for c in choices]))) == []


def test_widths_are_rounded_to_multiples_and_hold_the_whole():
    start = built(nn.Conv2d(3, 20, 1), nn.ReLU(), nn.Conv2d(20, 2, 1))
    assert [c.counts for c in width_choices(start, (0.1, 0.5, 0.75), 1)] == [(2, 10, 15, 20)]
    assert [c.counts for c in width_choices(start, (0.1, 0.5, 0.75), 8)] == [(8, 16, 20)]
    assert width_choices(start, (1.0,), 1) == width_choices(start, (0.5,), 32) == ()


def test_channels_that_a_sum_has_are_a_stream_and_those_inside_a_branch_are_not():
    start = program("InvertedResidual")
    names = {g.name for g in structure(start).groups if residual_streams(start) & set(g.units.tolist())}
    assert names == {"stem"}
