"""The command line names arguments by their flags, or by the line of the config file that says them."""

from pathlib import Path

import pytest
from torch import nn

import fxsurgery
from fxsurgery.argument_names import assigned, command, entry, keyword, named, naming_by, usage
from fxsurgery.config import FlagNames, origins_of


@pytest.mark.parametrize(
    ("told", "text"),
    [
        (lambda: named("train_data"), "--train-data"), (lambda: named("budget", "macs"), "--budget macs"),
        (lambda: named("model"), "MODEL"), (lambda: named("batch_dims"), "batch_dims"),
        (lambda: keyword("spend"), "--spend"), (lambda: keyword("settings", "align"), "--set align"),
        (lambda: keyword("example_inputs"), "--example-shape or --example-inputs"),
        (lambda: keyword("split"), "split="), (lambda: assigned("resume", value=True), "--resume"),
        (lambda: assigned("trained", value=False), "--not-trained"),
        (lambda: assigned("check", value=False), "--no-check"),
        (lambda: assigned("method", "prune"), "--method prune"), (lambda: assigned("opset", 17), "--opset 17"),
        (lambda: assigned("dynamic_batch", value=False), "--fixed-batch"),
        (lambda: entry("settings", "importance", "taylor"), "--set importance=taylor"),
        (lambda: entry("budget", "macs", 0.5), "--budget macs=0.5"),
        (lambda: command("inspect"), "fxsurgery inspect"),
        (lambda: assigned("rounds", 10**12), "--rounds 1000000000000"),
        (lambda: usage("load(folder, original=your_model)", "original"), "--original MODULE:NAME"),
        (lambda: usage("f(x)", "train_data", "val_data", call=True), "pass --train-data DATA --val-data DATA"),
    ],
)  # fmt: skip
def test_an_argument_is_named_by_its_flag(told, text: str):
    with naming_by(FlagNames()):
        assert told() == text


def test_what_the_file_says_is_named_by_its_line_unless_a_flag_replaces_it(tmp_path: Path):
    path = tmp_path / "run.toml"
    path.write_text('model = "n:N"\nworkers = 3\n[spend]\nepochs = 3\n', encoding="utf-8")
    with naming_by(FlagNames(origins_of(path, {"workers": 2}))):
        assert named("workers") == "--workers"
        assert named("spend") == f"{path}, line 3: spend"
        assert named("spend", "epochs") == f"{path}, line 4: spend.epochs"
        assert named("seed") == "--seed"


def test_python_is_spoken_to_as_before():
    with naming_by(FlagNames()), pytest.raises(fxsurgery.SurgeryError, match="--resume continues"):
        fxsurgery.optimize(net(), resume=True, verbose=False)
    with pytest.raises(fxsurgery.SurgeryError, match=r"resume=True continues the run of a directory: pass run_dir="):
        fxsurgery.optimize(net(), resume=True, verbose=False)


def net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
