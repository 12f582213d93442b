"""The parts of the page: layers and their groups, curves, gates, and how figures are written."""

import itertools
import math
import re

import pytest
import torch
from torch import Tensor, nn

from fxsurgery.analysis.cost import cost
from fxsurgery.capture import capture
from fxsurgery.demo import DigitsNet
from fxsurgery.report import formatting, render
from fxsurgery.report.chart import Axis, axis, line
from fxsurgery.report.curves import curves, stages
from fxsurgery.report.formatting import DASH, MINUS, PER_CENT, TIMES
from fxsurgery.report.gate_chart import histogram
from fxsurgery.report.layer_table import grouped, layers
from nonempty import nonempty
from report.pages import history, operated, program, result


class Mixed(nn.Module):
    """One layer of each kind, a parameter that the graph reads, and a conv that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.token = nn.Embedding(11, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.rnn = nn.GRU(8, 12, batch_first=True)
        self.up, self.twice = nn.ConvTranspose1d(12, 6, 3), nn.Conv1d(6, 6, 3, padding=1, groups=6)
        self.norm, self.weight = nn.BatchNorm1d(6), nn.Parameter(torch.randn(5, 6))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.rnn(self.embedding(ids) + self.token)[0].transpose(1, 2)
        x = self.norm(self.twice(self.twice(self.up(x))))
        return nn.functional.linear(x.mean(-1), self.weight)


def test_layers_of_every_kind_have_their_width_in_the_order_they_run():
    taken = capture(Mixed().eval(), torch.randint(0, 11, (2, 5)))
    found = layers(taken, taken)
    assert {layer.name: layer.widest for layer in found} == {
        "embedding": 8, "token": 8, "rnn": 12, "up": 6, "twice": 6, "weight": 5,
    }  # fmt: skip
    assert [layer.name for layer in found] == ["embedding", "token", "rnn", "up", "twice", "weight"]
    kinds = {layer.name: layer.kind for layer in found}
    assert kinds["twice"] == "Conv1d 3 depthwise"
    assert kinds["weight"].replace(TIMES, "x") == "parameter 5x6"
    assert {layer.name for layer in found if layer.state == "fixed"} == {"weight"}
    assert sum(layer.before.macs for layer in found if layer.before) == cost(taken).macs


def test_parameters_of_the_layers_are_all_but_those_of_the_norms():
    taken = capture(DigitsNet((8, 16)).eval(), torch.randn(2, 1, 8, 8))
    norms = [m for m in taken.graph_module.modules() if isinstance(m, nn.BatchNorm2d)]
    of_norms = sum(p.numel() for norm in norms for p in norm.parameters())
    found = layers(taken, taken)
    assert sum(layer.before.params for layer in found if layer.before) == cost(taken).params - of_norms
    groups = grouped(found)
    assert [(g.name, len(g.layers)) for g in groups] == [("stem", 1), ("blocks", 7), ("head", 1)]
    assert [layer for g in groups for layer in g.layers] == nonempty(found)
    assert groups[1].short(groups[1].layers[0]) == "0.conv1"


def test_hundreds_of_layers_are_folded_and_all_there():
    original = program(blocks=100)
    page = render(result(original=original, program=original))
    assert len(re.findall(r'<tr class="(?:same|fixed)">', page)) == 102
    assert "<details open>" not in page
    assert len(page) < 1_000_000


def test_a_flat_net_of_hundreds_of_layers_is_one_group():
    body = [nn.Linear(4, 4) for _ in range(120)]
    taken = capture(nn.Sequential(*body).eval(), torch.randn(2, 4))
    [group] = grouped(layers(taken, taken))
    assert len(group.layers) == 120


def test_parts_of_one_layer_each_are_one_group():
    original = program(blocks=70)
    found = layers(original, original)
    assert [len(group.layers) for group in grouped(found)] == [1, 70, 1]


def test_what_was_added_stands_after_what_it_took_the_place_of():
    original = program()
    names = [layer.name for layer in layers(original, operated(original))]
    assert names == ["stem", "blocks.0.0", "blocks.1.0", "blocks.1.0_first", "blocks.1.0_second", "head"]
    back = [layer.name for layer in layers(operated(original), original)]
    assert back == ["stem", "blocks.1.0_first", "blocks.1.0_second", "blocks.0.0", "blocks.1.0", "head"]


def test_a_large_part_is_taken_apart():
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stages = nn.ModuleList(nn.Sequential(*[nn.Linear(4, 4) for _ in range(35)]) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.stages[1](self.stages[0](x))

    taken = capture(Deep().eval(), torch.randn(2, 4))
    assert [(g.name, len(g.layers)) for g in grouped(layers(taken, taken))] == [("stages.0", 35), ("stages.1", 35)]


def test_a_model_without_weights_has_a_page():
    taken = capture(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()).eval(), torch.randn(2, 4))
    assert "no layer with a weight matrix" in render(result(original=taken, program=taken))


def test_stages_follow_each_other_and_one_that_starts_over_is_another():
    found = stages([*history(), *history()[-10:]])
    assert [stage.name for stage in found] == ["architecture", "fine-tune", "fine-tune"]
    assert found[0].left == 0.0
    for one, following in nonempty(itertools.pairwise(found)):
        assert following.left == pytest.approx(one.left + one.width)
    assert found[-1].left + found[-1].width == pytest.approx(1.0)


def test_a_short_stage_is_wide_enough_to_be_seen():
    long = [{"stage": "long", "step": n, "steps": 10_000, "loss": 1.0, "lr": 0.1} for n in (5_000, 10_000)]
    short = [{"stage": "short", "step": n, "steps": 4, "loss": 1.0, "lr": 0.1} for n in (2, 4)]
    assert min(stage.width for stage in stages([*long, *short])) > 0.1
    many = stages([dict(r, stage=f"{r['stage']} {i}") for i in range(40) for r in short])
    assert sum(stage.width for stage in many) == pytest.approx(1.0)


def test_curves_go_through_the_records():
    found = stages(history())
    loss, metric, rate = curves(found, "accuracy", 0.9125)
    assert [c.title for c in (loss, metric, rate)] == ["Training loss", "Validation accuracy", "Learning rate"]
    assert len(loss.lines) == 2
    points = re.findall(r"[ML]([\d.]+) ([\d.]+)", loss.lines[0])
    assert len(points) == 10
    assert [float(x) for x, _ in points] == pytest.approx([50.0 * n for n in range(1, 11)])
    heights = [float(y) for _, y in points]
    assert heights == sorted(heights)
    assert metric.note == "dashed: the original, 0.9125"
    assert metric.dots.count("M") == 4
    assert "architecture, 20 steps: from 0.5 to 1" in metric.summary


def test_what_was_never_measured_is_not_drawn():
    bare = [{k: v for k, v in record.items() if k not in {"metric", "lr"}} for record in history()]
    assert [c.title for c in curves(stages(bare), "accuracy", None)] == ["Training loss"]
    assert curves(stages([]), "accuracy", 0.5) == ()


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        ([0.0, 1.0], ["0", "0.5", "1"]),
        ([0.91, 0.93], ["0.91", "0.92", "0.93"]),
        ([3.0], ["2.9", "3", "3.1"]),
        ([0.0], ["-1", "-0.5", "0", "0.5", "1"]),
        ([-2.0, 2e6], ["0", "1M", "2M"]),
        ([12345.1, 12345.3], ["12.3451k", "12.3452k", "12.3453k"]),
        ([1.0, 1.0 + 2e-16], ["0.95", "1", "1.05"]),
    ],
)
def test_ticks_are_round(values: list[float], labels: list[str]):
    assert [tick.label.replace(MINUS, "-") for tick in axis(values).ticks()] == labels


def test_a_wide_range_is_logarithmic_and_every_value_is_inside():
    values = [1e-3, 0.5, 20.0]
    scale = axis(values, may_be_log=True)
    assert scale.logarithmic
    assert [tick.label for tick in scale.ticks()] == ["0.001", "0.01", "0.1", "1", "10"]
    assert all(0 <= scale.up(v) <= 1 for v in values)
    assert not axis([0.0, *values], may_be_log=True).logarithmic
    assert line([(0, 0.0), (1000, 1.0)], Axis(0.0, 1.0)) == "M0.00 100.00L1000.00 0.00"


def test_gates_are_counted_and_the_undecided_are_told():
    found = histogram((0.0, 0.05, 0.1, 0.3, 0.89, 0.9, 1.0, 1.0))
    assert found is not None
    assert (found.closed, found.undecided, found.open) == (3, 2, 3)
    assert found.summary == "Of 8 gates, 3 closed, 2 undecided and 3 open"
    assert sum(int(bar.label.rsplit(": ", 1)[1]) for bar in found.bars) == 8
    assert all(nonempty(bar.height > 0 for bar in found.bars if not bar.label.endswith(": 0")))
    assert histogram(()) is None


@pytest.mark.parametrize(
    ("before", "after", "written"),
    [
        (100, 50, "-50.0 %"),
        (100, 150, "+50.0 %"),
        (100, 100, "0 %"),
        (100, 0, "-100.0 %"),
        (1e6, 100, "-99.99 %"),
        (1e12, 1, "-100.000000000 %"),
        (0, 5, DASH),
    ],
)
def test_changes_keep_their_sign_and_nearly_all_is_not_all(before: float, after: float, written: str):
    assert formatting.change(before, after).replace(MINUS, "-").replace(PER_CENT, " %") == written


def test_figures_are_written_as_people_read_them():
    assert formatting.figure(math.inf) == DASH
    assert formatting.compact(23_528_522) == "23.5 M"
    assert formatting.compact(12) == "12"
    assert formatting.budget({"macs": 0.5, "params": None}) == f"at most 50{PER_CENT} of the MACs"
    both = formatting.budget({"macs": 2_000_000, "params": 0.125})
    assert both == f"at most 2,000,000 MACs and 12.5{PER_CENT} of the parameters"
    assert formatting.budget(None) == ""
    assert formatting.enumerated(["a", "b", "c"]) == "a, b and c"
