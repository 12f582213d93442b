"""Each command from end to end on a tiny model."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import fxsurgery
from fxsurgery.cli.sources import Wanted
from nonempty import nonempty


def same_weights(one: Path, other: Path) -> bool:
    first, second = (fxsurgery.load(path).model.state_dict() for path in (one, other))
    return first.keys() == second.keys() and all(torch.equal(v, second[k]) for k, v in first.items())


def test_optimize_keeps_what_it_is_told_to(optimized: Path):
    told = json.loads((optimized / "told.json").read_text())
    assert told["cost"]["macs"]["ratio"] <= 0.5
    assert set(told["metrics"]) >= {"val", "test"}
    assert set(told["kept"]) == {"out", "onnx", "report", "run"}
    assert told["failures"] == []
    result = fxsurgery.load(optimized / "small")
    assert result.cost[1].macs == told["cost"]["macs"]["after"]
    assert same_weights(optimized / "small", optimized / "run" / "result")
    assert onnx.load(optimized / "small.onnx").graph.input[0].name == "x"
    assert (optimized / "small.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_a_config_file_and_flags_give_the_same_result(here: Path, optimized: Path, give, seen: list[str]):
    printed = give("optimize", "sample_nets:Net", *seen, "--print-config")
    assert printed.exit_code == 0
    Path("run.json").write_text(printed.stdout)
    result = give("optimize", "--config", "run.json", "--out", "again", "--quiet")
    assert result.exit_code == 0, result.output
    assert same_weights(here / "again", optimized / "small")


def test_the_same_command_with_resume_ends_the_same(here: Path, give, seen: list[str]):
    command = ["optimize", "sample_nets:Net", *seen, "--run-dir", "run", "--resume", "--out", "one"]
    first = give(*command)
    kept = fxsurgery.load("one").model.state_dict()
    second = give(*command, "--report", "one.html")
    assert (first.exit_code, second.exit_code) == (0, 0), second.output
    again = fxsurgery.load("one").model.state_dict()
    assert all(torch.equal(v, again[k]) for k, v in nonempty(kept.items()))
    assert (here / "one.html").exists()


def test_a_result_can_be_optimized_further(here: Path, optimized: Path, give, seen: list[str]):
    result = give("optimize", optimized / "small", *seen, "--budget", "params=80%", "--json", "--quiet")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["cost"]["params"]["ratio"] <= 0.8


def test_the_method_is_chosen_by_a_flag(here: Path, give, seen: list[str]):
    shrunk = [flag for flag in seen if "architecture" not in flag]
    result = give(
        "optimize", "sample_nets:Net", *shrunk, "--method", "prune", "--set", "rounds=2", "--dry-run", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["method"] == "prune"


def test_without_data_it_says_so_loudly(here: Path, give):
    result = give("optimize", "sample_nets:Net", "--example-shape", "3,8,8", "--budget", "macs=0.0001")
    assert result.exit_code == 1
    assert result.stderr.startswith("WITHOUT DATA: ")
    assert "note: the result will not be saved" in result.stderr


def test_a_task_brings_all_its_data(here: Path, give):
    result = give("optimize", "sample_nets:Net", "--train-data", "sample_data:task", "--dry-run")
    assert result.exit_code == 0, result.output
    refused = give("optimize", "sample_nets:Net", "--train-data", "sample_data:task", "--val-data", "sample_data:val")
    assert refused.exit_code == 1
    assert "leave --val-data out" in refused.stderr


def test_loss_and_metric_are_the_users(here: Path, give, seen: list[str]):
    given = ["--loss", "sample_data:smooth", "--metric", "sample_data:share"]
    result = give("optimize", "sample_nets:Net", *seen, *given, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["metric"] == "share"


def test_untrained_weights_are_trained_first(here: Path, give, seen: list[str]):
    result = give("optimize", "sample_nets:Net", *seen, "--not-trained", "--dry-run", "--json")
    assert [stage["name"] for stage in json.loads(result.stdout)["stages"]] == ["weights", "architecture", "fine-tune"]


def test_a_dry_run_shows_the_plan_and_writes_nothing(here: Path, give, seen: list[str]):
    before = sorted(here.iterdir())
    result = give("optimize", "sample_nets:Net", *seen, "--dry-run", "--run-dir", "run", "--out", "small")
    assert result.exit_code == 0, result.output
    for text in ("method: dnal", "macs: ", "at the least", "stage architecture: ", "estimated time: "):
        assert text in result.stdout
    assert [path for path in sorted(here.iterdir()) if path.name != "__pycache__"] == before


def test_a_dry_run_of_what_cannot_be_reached_ends_with_1(here: Path, give, seen: list[str]):
    result = give("optimize", "sample_nets:Net", *seen, "--dry-run", "--budget", "macs=0.001")
    assert result.exit_code == 1
    assert "cannot be reached: the least is" in result.stderr


@pytest.mark.slow
def test_optimize_writes_code_that_needs_torch_alone(here: Path, give, seen: list[str]):
    result = give("optimize", "sample_nets:Net", *seen, "--standalone", "alone", "--quiet")
    assert result.exit_code == 0, result.output
    assert (here / "alone" / "model.py").is_file()


def test_one_file_that_fails_does_not_cost_the_others(here: Path, give, seen: list[str], monkeypatch):
    def refuse(*_args: object) -> None:
        raise fxsurgery.ExportError("no exporter can do it")

    monkeypatch.setattr(fxsurgery.Result, "export_onnx", refuse)
    result = give("optimize", "sample_nets:Net", *seen, "--out", "small", "--onnx", "small.onnx", "--json")
    assert result.exit_code == 1
    assert "error: --onnx: no exporter can do it" in result.stderr
    assert json.loads(result.stdout)["kept"] == {"out": "small"}
    assert fxsurgery.load("small").metrics


def test_inspect_says_what_can_shrink(here: Path, give):
    result = give("inspect", "sample_nets:Net", "--model-args", "width=24", "--example-shape", "3,8,8")
    assert result.exit_code == 0
    assert "first.0: 24 channels" in result.stdout


def test_inspect_guesses_the_inputs_and_says_so(here: Path, give):
    result = give("inspect", "sample_nets:Net", "--json")
    assert "--example-shape or --example-inputs overrides" in result.stderr
    told = json.loads(result.stdout)
    assert {width["name"] for width in told["widths"]} == {"first.0", "second.0"}
    assert told["params"] == sum(p.numel() for p in Wanted("sample_nets:Net").load().model.parameters())


def test_inspect_takes_inputs_that_are_no_images(here: Path, give):
    result = give("inspect", "sample_nets:tokens", "--example-inputs", "sample_data:ids")
    assert result.exit_code == 0, result.output
    assert "removable units" in result.stdout


@pytest.mark.parametrize("what", ["small", "run"])
def test_saved_results_and_runs_can_be_inspected_and_reported(optimized: Path, tmp_path, give, what: str):
    assert json.loads(give("inspect", optimized / what, "--json").stdout)["params"] < 2900
    reported = give("report", optimized / what, tmp_path / "it.html")
    assert reported.exit_code == 0, reported.output
    assert (tmp_path / "it.html").stat().st_size > 1000


def test_a_saved_result_can_be_exported(optimized: Path, tmp_path, give):
    exported = give("export", optimized / "small", tmp_path / "it.onnx", "--opset", 17, "--exporter", "legacy")
    assert exported.exit_code == 0, exported.output
    assert "opset 17, by the legacy exporter; agrees with PyTorch to" in exported.stdout


def test_what_was_kept_as_leaf_is_taken_from_the_users_model(here: Path, give, seen: list[str]):
    model = ["sample_nets:WithOdd", "--model-args", "width=24"]
    made = give("optimize", *model, *seen, "--budget", "macs=0.9", "--out", "small")
    assert made.exit_code == 0, made.output
    refused = give("inspect", "small")
    assert refused.exit_code == 1
    assert "`second.odd`" in refused.stderr
    assert "pass it: --original MODULE:NAME" in refused.stderr
    inspected = give("inspect", "small", "--original", *model)
    assert inspected.exit_code == 0, inspected.output
    assert "`second.odd` (Odd) is kept as a leaf" in inspected.stdout


def test_any_model_can_be_exported(here: Path, give):
    result = give("export", "sample_nets:Net", "net.onnx", "--example-shape", "3,8,8", "--exporter", "legacy", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["path"], told["exporter"]) == ("net.onnx", "legacy")
    assert Path("net.onnx").stat().st_size == told["bytes"]


def test_an_export_to_float16_is_smaller_and_checked(here: Path, give):
    told = list[dict]()
    for name, flags in (("whole.onnx", ()), ("half.onnx", ("--float16",))):
        command = ("export", "sample_nets:Net", name, "--example-shape", "3,8,8", "--exporter", "legacy", "--json")
        result = give(*command, *flags)
        assert result.exit_code == 0, result.output
        told.append(json.loads(result.stdout))
    whole, half = told
    assert half["bytes"] < whole["bytes"]
    assert whole["parity"]["error"] < 1e-5 < half["parity"]["error"] < 2e-2


def test_a_model_that_draws_is_exported_unchecked(here: Path, give):
    Path("sample_draws.py").write_text(
        "import torch\n\n\nclass Net(torch.nn.Linear):\n    def forward(self, x):\n"
        "        return torch.nn.functional.dropout(super().forward(x), 0.5, training=True)\n\n\n"
        "def net():\n    return Net(8, 4)\n"
    )
    command = ("export", "sample_draws:net", "net.onnx", "--example-shape", "8", "--exporter", "legacy")
    refused = give(*command)
    assert (refused.exit_code, Path("net.onnx").exists()) == (1, False)
    assert "or export it unchecked with --no-check" in " ".join(refused.stderr.split())
    made = give(*command, "--no-check")
    assert made.exit_code == 0, made.output
    assert "; not checked" in made.stdout
    assert Path("net.onnx").is_file()


@pytest.mark.slow
def test_bench_compares_original_and_result(optimized: Path, give):
    result = give("bench", optimized / "small", "--rounds", 5, "--json")
    assert result.exit_code == 0, result.output
    assert [model["name"] for model in json.loads(result.stdout)["models"]] == ["original", "result"]


def test_bench_compares_files(optimized: Path, tmp_path, give):
    twin = tmp_path / "twin.onnx"
    twin.write_bytes((optimized / "small.onnx").read_bytes())
    result = give("bench", optimized / "small.onnx", twin, "--rounds", 5)
    assert result.exit_code == 0, result.output
    assert "small " in result.stdout
    assert "twin " in result.stdout


def test_json_is_all_there_is_on_standard_output(here: Path, give):
    Path("sample_loud.py").write_text(
        "import torch\nprint('hello')\n\n\ndef net():\n    print('hi')\n    return torch.nn.Linear(3, 2)\n"
    )
    result = give("inspect", "sample_loud:net", "--example-shape", "3", "--json")
    assert json.loads(result.stdout)["params"] == 8
    assert "hello\nhi\n" in result.stderr


def test_npz_data_are_as_good_as_a_module(here: Path, give, quick: list[str]):
    generator = np.random.default_rng(0)
    for name, count in (("train", 64), ("val", 32)):
        np.savez(f"{name}.npz", x=generator.normal(size=(count, 3, 8, 8)), y=np.arange(count) % 4)
    result = give(
        "optimize", "sample_nets:Net", "--train-data", "train.npz", "--val-data", "val.npz", *quick, "--quiet"
    )
    assert result.exit_code == 0, result.output
