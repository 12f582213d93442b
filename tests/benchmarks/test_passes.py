"""The benchmark of the passes: every pass is in it, and its parts measure what they say."""

import torch

from benchmarks.models import PRESETS
from benchmarks.passes import accuracy, pooling
from benchmarks.passes.svd import _pruning
from benchmarks.runs import once
from fxsurgery.analysis.structure import structure
from fxsurgery.capture import capture
from fxsurgery.passes import ALL, AddPool, FoldBn
from nonempty import nonempty


def test_every_pass_has_a_row_on_v8():
    start = capture(PRESETS["V8"].model(0).eval(), torch.randn(4, 1, 28, 28))
    found = [(name, program) for name, program, *_ in accuracy._tried(start)]
    assert {name.partition("(")[0] for name, _ in found} == {"as it is", *ALL}
    assert len({name for name, _ in found}) == len(found)


def test_a_row_names_what_was_chosen_and_no_defaults():
    assert accuracy._short(FoldBn()) == "fold-bn"
    assert accuracy._short(AddPool("relu", "max")) == "add-pool(after='relu', kind='max')"


def test_moves_are_spread_from_the_first_to_the_last():
    moves = [AddPool(str(i)) for i in range(9)]
    assert [m.after for m in accuracy._spread(moves)] == ["0", "4", "8"]
    assert accuracy._spread(moves[:2]) == moves[:2]


def test_the_control_keeps_the_units_that_count_most():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = pooling.Minimal().eval()
    start = capture(model, torch.randn(2, 1, 28, 28))
    ((_, gone),) = _pruning(start, 30).drop
    group = structure(start).group("dense")
    assert group is not None
    assert len(group.units) == 32
    assert len(gone) == 2
    assert set(nonempty(gone)) == set(model.head.weight.abs().sum(0).argsort()[:2].tolist())


def test_a_run_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.runs.RUNS", tmp_path / "runs")
    made = list[int]()

    def run() -> dict[str, float]:
        made.append(1)
        return {"accuracy": 0.5}

    assert once("a", run) == once("a", run) == {"accuracy": 0.5}
    assert made == [1]
