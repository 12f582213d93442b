import json
import sys

import pytest
import torch
from torch import nn

from benchmarks.coverage import __main__ as command
from benchmarks.coverage import report
from benchmarks.coverage.__main__ import read, todo
from benchmarks.coverage.child import cover
from benchmarks.coverage.lively import enliven
from benchmarks.coverage.ours import choose, verdict
from benchmarks.coverage.record import Journal, Row, Stage, first_line
from benchmarks.coverage.samples import listed, named
from benchmarks.coverage.sweep import Settings, isolated, settle
from benchmarks.tables import Header
from fxsurgery import CaptureError, ExportError, PassCrashedError, VerifyError, capture
from fxsurgery.analysis.structure import structure
from fxsurgery.comparison import relative_error
from fxsurgery.inputs import Inputs
from fxsurgery.passes import PruneChannels
from nonempty import nonempty

ABOUT = Header(command="python -m benchmarks.coverage", date="2026-01-02", cpu="Some CPU", cores=2, torch="2.15.0")


def row(model, tool="fxsurgery", status="pass", reason="", onnx="", notes=(), left=0.5, **stages):
    figures = {"params left": left, "params": 100, "effect": 0.5}
    spent = {name: Stage(cpu_s, cpu_s, 1.0) for name, cpu_s in stages.items()}
    about = {"seed": 0, "ratio": 0.3, "limit": 120, "commit": "abc"}
    return Row(
        model, tool, status, reason, captured=True, stages=spent, figures=figures, notes=list(notes), onnx=onnx,
        about=about,
    )  # fmt: skip


ROWS = [
    row("awkward/A", analysis=0.2, rewrite=0.1, notes=["for this number of inputs only"]),
    row(
        "awkward/B",
        analysis=0.5,
        rewrite=0.5,
        onnx="the original too: ExportError: no",
        notes=["fft is kept as a leaf"],
    ),
    row("awkward/C", status="refused", reason="capture: CaptureError: a branch", left=1.0),
    row("awkward/A", "torch-pruning", "right", build=0.3, prune=0.3),
    row("awkward/B", "torch-pruning", "unchecked", build=0.3, prune=0.2),
    row("awkward/C", "torch-pruning", "hung", reason="build: over 120 CPU-s"),
]


def test_each_name_stands_once_in_its_list():
    for name in ("torchvision", "awkward"):
        names = [sample.name for sample in listed([name])]
        assert len(names) == len(set(names)) > 35
        assert all(n.startswith(f"{name}/") for n in nonempty(names))


def test_only_picks_by_regular_expression():
    assert [s.name for s in listed(["awkward"], "/(UNet|GRU)$")] == ["awkward/UNet", "awkward/GRU"]


def test_quantized_models_and_optical_flow_are_left_out():
    names = {sample.name for sample in listed(["torchvision"])}
    assert not any("quantized" in n or "raft" in n for n in nonempty(names))
    assert {"torchvision/resnet50", "torchvision/fcn_resnet50", "torchvision/s3d"} <= names


@pytest.mark.parametrize("sample", listed(["awkward"]), ids=lambda sample: sample.name.partition("/")[2])
def test_awkward_nets_run_and_answer_to_their_input(sample):
    model, inputs = sample.example(0)
    again, _ = sample.example(0)
    for a, b in nonempty(zip(model.parameters(), again.parameters(), strict=True)):
        assert torch.equal(a, b)
    with torch.no_grad():
        output = torch.utils._pytree.tree_leaves(model(*inputs.args, **inputs.kwargs))[0]
        other = inputs.map(lambda x: x.flip(-1) + 1 if x.is_floating_point() else (x + 7) % 50)
        assert not torch.allclose(output, torch.utils._pytree.tree_leaves(model(*other.args, **other.kwargs))[0])
    assert output.isfinite().all()


def test_lively_weights_are_neither_zero_nor_constant():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 1))
    nn.init.zeros_(net[2].weight)
    nn.init.ones_(net[3].weight)
    enliven(net, Inputs((torch.randn(1, 3, 6, 6),)), seed=0)
    assert all(p.std() > 0.01 for p in nonempty(net.parameters()))
    assert net[3].weight.min() >= 0.5


def test_lively_statistics_are_near_those_of_the_activations_but_not_them():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    x = 50 + 10 * torch.randn(1, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    enliven(net, Inputs((x,)), seed=0)
    given = net[0](torch.cat([x, torch.zeros_like(x)])).detach()
    assert (net[1].running_var / given.var((0, 2, 3))).log().abs().max() < 1.5
    assert (net[1].running_mean - given.mean((0, 2, 3))).abs().max() > 0


@pytest.mark.parametrize("name", ["torchvision/mobilenet_v2", "torchvision/efficientnet_b0"])
def test_a_deep_net_still_answers_to_its_input(name):
    model, inputs = named(name).example(0)
    with torch.no_grad():
        assert relative_error(model(inputs.args[0].flip(-1)), model(*inputs.args)) > 0.05


def test_a_removal_is_seeded_and_leaves_every_tensor_something():
    model, inputs = named("awkward/UNet").example(0)
    program = capture(model, inputs.args)
    facts = structure(program)
    drop = choose(facts, 0.95, seed=3)
    assert drop == choose(facts, 0.95, seed=3) != choose(facts, 0.95, seed=4)
    gone = [facts.group(name).units[list(positions)] for name, positions in drop]
    assert not facts.empty_dims(facts.mask([unit for units in gone for unit in units]))


@pytest.mark.parametrize(
    ("error", "stage", "status"),
    [
        (CaptureError("no"), "capture", "refused"),
        (VerifyError("x promised equal outputs; they differ by 1e-1"), "proof", "wrong"),
        (VerifyError("x left a program that does not run"), "proof", "crash"),
        (PassCrashedError("x crashed"), "proof", "crash"),
        (RuntimeError("x"), "analysis", "crash"),
        (ExportError("x"), "train", "crash"),
    ],
)
def test_an_error_says_what_became_of_the_model(error, stage, status):
    assert verdict(error, stage) == status


@pytest.mark.parametrize(
    ("code", "tool", "killed", "status", "reason"),
    [
        (-24, "fxsurgery", "", "hung", "prune: over 120 CPU-s"),
        (-14, "torch-pruning", "", "hung", "prune: over 240 s"),
        (-9, "fxsurgery", "10.0 GiB", "hung", "prune: over 10.0 GiB"),
        (-11, "fxsurgery", "", "crash", "prune: signal SIGSEGV: boom"),
        (1, "torch-pruning", "", "failed", "prune: exit status 1: boom"),
    ],
)
def test_a_process_that_died_leaves_a_verdict(code, tool, killed, status, reason):
    settled = settle(Row("awkward/A", tool, stage="prune"), code, killed, "boom", Settings(limit_s=120))
    assert (settled.status, settled.reason) == (status, reason)


def test_a_verdict_given_before_the_process_died_stands():
    done = Row("awkward/A", "fxsurgery", "pass", stage="onnx", onnx="hung")
    assert settle(done, -24, "", "", Settings()).status == "pass"


def test_a_process_over_its_memory_is_killed():
    assert "GiB" in isolated("awkward/UNet", "fxsurgery", Settings(), memory_limit_mib=1).reason


def test_the_journal_keeps_the_row_on_disk(tmp_path):
    journal = Journal(Row("awkward/A", "fxsurgery"), tmp_path / "row.json")
    with journal.stage("analysis"):
        assert Row.read((tmp_path / "row.json").read_text()).stage == "analysis"
    journal.end("pass")
    kept = Row.read((tmp_path / "row.json").read_text())
    assert kept == journal.row
    assert kept.cpu_s("analysis") >= 0
    assert kept.cpu_s("analysis", "rewrite") is None


def test_the_last_line_of_a_pair_counts_and_finished_pairs_are_skipped(tmp_path):
    path = tmp_path / "run.jsonl"
    lines = [row("awkward/UNet", status="crash"), row("torchvision/alexnet"), row("awkward/UNet")]
    path.write_text("".join(f"{r.line()}\n" for r in lines))
    rows = read(path)
    assert [(r.model, r.status) for r in rows] == [("torchvision/alexnet", "pass"), ("awkward/UNet", "pass")]
    left = todo(listed(["awkward"], "UNet|GRU"), ["fxsurgery", "torch-pruning"], rows)
    assert [(s.name, tool) for s, tool in left] == [
        ("awkward/UNet", "torch-pruning"),
        ("awkward/GRU", "fxsurgery"),
        ("awkward/GRU", "torch-pruning"),
    ]


def test_times_are_compared_where_both_succeed():
    found = report.compared(ROWS[:3], ROWS[3:])
    assert found.models == 2
    assert found.ratio == pytest.approx((0.3 / 0.6 + 1.0 / 0.5) / 2)
    assert (found.worst, found.worst_on) == (pytest.approx(2.0), "awkward/B")
    assert report.compared(ROWS[2:3], ROWS[3:]) is None


def test_the_page_counts_and_names_what_did_not_pass():
    page = report.page(ROWS, ABOUT)
    assert "| awkward | fxsurgery | 3 | 3 | 2 | 0 | 0 | 0 | 0 | 1 | 0 | 0.50 |" in page
    assert "| awkward | torch-pruning | 3 | 3 | 1 | 1 | 0 | 0 | 0 | 0 | 1 | 0.50 |" in page
    assert "## Not passed by fxsurgery: 1\n\n* awkward/C: refused: capture: CaptureError: a branch" in page
    assert "## Export to ONNX that failed: 1\n\n* awkward/B: the original too: ExportError: no" in page
    assert "## Opaque parts that fxsurgery names: 1\n\n* awkward/B: fft is kept as a leaf\n" in page
    assert "## Not pruned, or wrong, by torch-pruning: 1\n\n* awkward/C: hung: build: over 120 CPU-s" in page


def test_page_and_all_rows_are_written(tmp_path):
    path = report.write(ROWS, tmp_path, ABOUT)
    raw = json.loads(path.with_suffix(".json").read_text())
    assert [r["model"] for r in raw["rows"]] == [r.model for r in ROWS]
    assert raw["versions"]["fxsurgery"]


def test_a_reason_is_one_line():
    assert first_line(ValueError("\nfirst\nsecond")) == "ValueError: first"
    assert first_line("at (/x/lib/site-packages/torch/nn.py:3)") == "at (torch/nn.py:3)"
    spec = PruneChannels((("a", (0, 1)), ("b", (2,))))
    assert (
        first_line(f"{spec} changed output shapes (1,) to (2,)") == "prune-channels changed output shapes (1,) to (2,)"
    )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries' models
@pytest.mark.parametrize(
    "name",
    ["awkward/GroupedShuffle", "awkward/UNet", "awkward/Rotary", "torchvision/resnet18", "torchvision/mobilenet_v2",
     "timm/convnext_atto", "timm/levit_128s"],
)  # fmt: skip
def test_whole_models_pass(name):
    journal = Journal(Row(name, "fxsurgery"))
    cover(journal, ratio=0.3, seed=0)
    assert (journal.row.status, journal.row.reason) == ("pass", "")
    assert journal.row.figures["params left"] < 0.9


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the rival
@pytest.mark.parametrize(("name", "status"), [("awkward/UNet", "right"), ("awkward/FlipAndRoll", "wrong")])
def test_torch_pruning_is_told_right_from_wrong(name, status):
    pytest.importorskip("torch_pruning")
    journal = Journal(Row(name, "torch-pruning"))
    cover(journal, ratio=0.3, seed=0)
    assert journal.row.status == status


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the libraries' models
@pytest.mark.parametrize("name", ["timm", "transformers"])
def test_the_libraries_know_every_model_of_the_list(name):
    samples = listed([name])
    assert len({sample.name for sample in samples}) == len(samples) >= 25
    samples[0].example(0)


def test_a_rival_that_is_not_installed_is_named_with_what_to_do(monkeypatch, capsys):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "torch_kirigami" else object())
    monkeypatch.setattr(sys, "argv", ["coverage", "--tools", "fxsurgery,torch-kirigami"])
    with pytest.raises(SystemExit):
        command._options()
    assert "torch-kirigami is not installed: pip install" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["coverage", "--table"])
    assert command._options().table


def test_removals_that_took_over_a_second_are_listed():
    rows = [row("timm/a", analysis=0.9, rewrite=0.2), row("timm/b", analysis=0.5, rewrite=0.2)]
    page = report.page(rows, ABOUT)
    assert "above one CPU second: 1" in page
    assert "* timm/a: 1.10" in page
