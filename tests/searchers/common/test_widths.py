"""Widths within a budget: aligned, as close below it as they can be, and refused with a figure otherwise."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from analysis.awkward import Attention
from devices import limited, milliseconds
from fxsurgery.analysis.cost import cost
from fxsurgery.analysis.structure import structure
from fxsurgery.budget import Budget
from fxsurgery.capture import capture
from fxsurgery.errors import BudgetError, StructureError
from fxsurgery.program import Program
from fxsurgery.searchers.common.reachable import require_reachable
from fxsurgery.searchers.common.width_selection import evenly, select_widths
from fxsurgery.searchers.common.widths import pruning, space
from nonempty import nonempty
from programs import program

IMAGE = torch.linspace(-1, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def wide() -> Program:
    layers = [nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 48, 3), nn.ReLU(), nn.Conv2d(48, 24, 3)]
    return capture(nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 10)).eval(), IMAGE)


def scores(start: Program, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(structure(start).size)


def widths(start: Program) -> list[int]:
    return [m.out_channels for _, m in start.calls(nn.Conv2d)]


@pytest.mark.parametrize("align", [1, 2, 4, 8])
@pytest.mark.parametrize("budget", [Budget(macs=0.5), Budget(params=0.3), Budget(macs=0.6, params=0.4)])
def test_lands_below_the_budget_with_aligned_widths(align: int, budget: Budget):
    start = wide()
    keep = select_widths(space(start, align=align), scores(start), budget)
    small = pruning(start, keep)(start).program
    assert budget.holds(cost(small), cost(start))
    assert all(width % align == 0 for width in nonempty(widths(small)))


@pytest.mark.parametrize("align", [1, 4, 8])
def test_no_block_that_was_left_out_would_still_fit(align: int):
    start = wide()
    found, budget = space(start, align=align), Budget(macs=0.5)
    keep = select_widths(found, scores(start), budget)
    kept = {choice.group.name: int(keep[choice.group.units].sum()) for choice in found.choices}
    for choice in nonempty(c for c in found.choices if max(c.counts) > kept[c.group.name]):
        units = choice.group.units
        ranked = units[np.argsort(-scores(start)[units], kind="stable")]
        more = keep.copy()
        more[ranked[: min(c for c in choice.counts if c > kept[choice.group.name])]] = True
        assert not budget.holds(cost(pruning(start, more)(start).program), cost(start))


def test_units_of_a_group_go_in_the_order_of_their_scores():
    start = wide()
    found, given = space(start, align=4), scores(start)
    keep = select_widths(found, given, Budget(macs=0.4))
    for units in nonempty(c.group.units for c in found.choices if not keep[c.group.units].all()):
        kept, gone = given[units][keep[units]], given[units][~keep[units]]
        assert kept.min() >= gone.max()


def test_unreachable_budget_says_the_minimum():
    start = wide()
    found = space(start, align=8)
    least = found.smallest().macs
    with pytest.raises(BudgetError, match=rf"cannot be reached: the least is {least:,}"):
        require_reachable(found, Budget(macs=0.001))
    with pytest.raises(BudgetError, match=r"50 is an absolute amount: did you mean 50%\?"):
        require_reachable(found, Budget(macs=50))


def test_the_minimum_is_what_the_smallest_widths_take():
    start = wide()
    found = space(start, align=8)
    removed = np.concatenate([c.group.units[c.counts[-1] :] for c in found.choices])
    small = pruning(start, structure(start).mask(removed))(start).program
    assert widths(small) == [8, 8, 8]
    assert cost(small).macs == found.smallest().macs


def test_a_width_below_the_alignment_stays():
    start = capture(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 16, 1), nn.Conv2d(16, 4, 1)).eval(), IMAGE)
    assert [c.group.name for c in space(start, align=8).choices] == ["1"]


def test_nothing_to_prune_says_why():
    start = capture(nn.Sequential(nn.Conv2d(3, 4, 1)).eval(), IMAGE)
    with pytest.raises(StructureError, match=r"no channel can be removed: .*the model's output"):
        space(start)
    narrow = capture(nn.Sequential(nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)).eval(), IMAGE)
    with pytest.raises(StructureError, match=r"in multiples of 8: 0 \(6\)"):
        space(narrow, align=8)


def test_inner_only_leaves_the_residual_stream_alone():
    start = program("Residual")
    everything, inner = space(start, align=1), space(start, align=1, inner_only=True)
    assert len(inner.choices) < len(everything.choices)
    assert all(len(c.group.producers) == 1 for c in nonempty(inner.choices))


def test_whole_groups_count_with_their_width():
    layers = [nn.Conv2d(3, 32, 1), nn.Conv2d(32, 32, 3, groups=8), nn.Conv2d(32, 4, 1)]
    start = capture(nn.Sequential(*layers).eval(), IMAGE)
    [choice] = space(start, align=8).choices
    assert choice.counts == (8, 6, 4, 2)


class Halves(nn.Module):
    """Each half of a conv's output feeds a conv of its own: neither may be emptied."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.a(x).chunk(2, 1)
        return self.b(left) + self.c(right)


def test_no_branch_is_emptied():
    start = capture(Halves().eval(), IMAGE)
    found = space(start, align=1)
    skewed = scores(start)
    skewed[found.choices[0].group.units[:8]] -= 10
    small = pruning(start, select_widths(found, skewed, Budget(macs=0.5)))(start).program
    assert all(m.in_channels > 0 for _, m in nonempty(small.calls(nn.Conv2d)))


def test_latency_is_met_by_what_was_measured():
    start = wide()
    allowed = 0.4 * milliseconds(start)
    keep = select_widths(space(start, align=4), scores(start), Budget(latency_ms=allowed), limited(allowed))
    after = milliseconds(pruning(start, keep)(start).program)
    assert 0.9 * allowed < after <= allowed


def test_latency_and_macs_hold_together():
    start = wide()
    allowed = 0.9 * milliseconds(start)
    budget = Budget(latency_ms=allowed, macs=0.3)
    keep = select_widths(space(start, align=4), scores(start), budget, limited(allowed))
    small = pruning(start, keep)(start).program
    assert budget.holds(cost(small), cost(start))
    assert milliseconds(small) <= 0.9 * milliseconds(start)


def test_unreachable_latency_says_the_least():
    with pytest.raises(BudgetError, match=r"a latency of 0\.5 ms cannot be reached: the least is .* without any "):
        select_widths(space(wide()), scores(wide()), Budget(latency_ms=0.5), limited(0.5))


def test_latency_without_a_device_is_refused():
    with pytest.raises(BudgetError, match="needs a device to measure on"):
        select_widths(space(wide()), scores(wide()), Budget(latency_ms=0.5))


def test_a_tighter_aim_that_nothing_meets_gives_the_smallest_widths():
    start = wide()
    limit = replace(limited(milliseconds(start)), aim_ms=0.1)
    keep = select_widths(space(start, align=8), scores(start), Budget(latency_ms=0.9), limit)
    assert widths(pruning(start, keep)(start).program) == widths(space(start, align=8).smallest_program())


def attention(rotary: bool) -> Program:
    model = nn.Sequential(Attention(rotary=rotary), nn.Flatten(), nn.Linear(18, 4))
    return capture(model.eval(), torch.linspace(-1, 1, 2 * 6 * 5).reshape(2, 6, 5))


@pytest.mark.parametrize("rotary", [False, True])
def test_heads_go_whole_and_keep_their_projections_aligned(rotary: bool):
    start = attention(rotary)
    found = space(start, align=4)
    assert {c.group.name: c.counts for c in found.choices}["0.q"] == (4, 2), "a head is 10 wide, so two go together"
    keep = select_widths(found, scores(start), Budget(macs=0.6))
    small = pruning(start, keep)(start).program
    assert small.module(next(n for n in small.nodes if n.target == "0.q")).out_features % 20 == 0


def test_what_no_gate_can_stand_for_is_said():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 4, 1))
    with pytest.raises(StructureError, match="a norm or softmax runs over them"):
        space(capture(model.eval(), IMAGE), align=1)


def test_what_no_gate_can_stand_for_can_be_taken_in():
    start = program("Attention")
    gateable, everything = space(start, align=1), space(start, align=1, exact=False)
    names = [{c.group.name for c in found.choices} for found in (gateable, everything)]
    assert names[1] - names[0] == {"patches"}
    assert everything.smallest().params < gateable.smallest().params


def test_the_minimum_empties_no_branch():
    start = capture(Halves().eval(), IMAGE)
    found = space(start, align=1)
    assert [m.in_channels for _, m in found.smallest_program().calls(nn.Conv2d)] == [3, 1, 1]
    assert cost(found.smallest_program()) == found.smallest()


def test_evenly_takes_each_group_in_the_order_of_scores():
    start = wide()
    found, given = space(start, align=4), scores(start)
    for size, choice in enumerate(nonempty(found.choices)):
        given[choice.group.units] *= 100.0**size  # as they stand, all of the first group would go first
    keep = select_widths(found, evenly(found, given), Budget(macs=0.4))
    shares = list[float]()
    for choice in nonempty(found.choices):
        units = choice.group.units
        kept, gone = given[units][keep[units]], given[units][~keep[units]]
        assert kept.min() >= gone.max()
        shares.append(len(kept) / len(units))
    assert max(shares) - min(shares) < 0.25
