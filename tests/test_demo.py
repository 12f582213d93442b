"""The demo's parts; the whole of it is slow."""

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

import fxsurgery
from fxsurgery import demo
from fxsurgery.cli import app
from nonempty import nonempty


def test_digits_are_split_without_overlap():
    parts = demo.digits()
    assert [len(x) for x, _ in parts] == [1149, 288, 360]
    assert all(x.shape[1:] == (1, 8, 8) and float(x.min()) >= 0 and float(x.max()) <= 1 for x, _ in nonempty(parts))


def test_the_network_takes_digits():
    assert demo.DigitsNet()(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_help_names_the_commands():
    result = CliRunner().invoke(app, ["--help"])
    assert result.exit_code == 0
    assert "demo" in result.output


def test_unreachable_budget_is_one_line_not_a_traceback():
    result = CliRunner().invoke(app, ["demo", "--macs", "0.0001"])
    assert result.exit_code == 1
    assert "cannot be reached" in result.output
    assert "Traceback" not in result.output


def test_each_step_of_the_demo_has_a_line_before_it(monkeypatch):
    def stop(*_args: object, **_options: object) -> None:
        raise fxsurgery.BudgetError("that is enough; stop")

    monkeypatch.setattr(demo, "optimize", stop)
    result = CliRunner().invoke(app, ["demo"])
    assert result.stderr.splitlines()[0] == "importing PyTorch"
    assert "loading the digits data set of scikit-learn" in result.stderr
    assert "capturing a residual network as a graph" in result.stderr.splitlines()[-2]


def test_help_of_the_demo_announces_nothing():
    result = CliRunner().invoke(app, ["demo", "--help"])
    assert (result.exit_code, result.stderr) == (0, "")


@pytest.mark.slow
def test_the_demo_halves_the_macs_and_keeps_the_accuracy(tmp_path, capfd):
    console = Console(record=True, width=100)
    outcome = demo.run(tmp_path, console=console)
    before, after = outcome.result.cost
    assert 0.48 * before.macs <= after.macs <= 0.5 * before.macs
    assert outcome.result.metrics["test"].after > 0.95
    assert {p.name for p in tmp_path.iterdir()} == {"original.onnx", "result.onnx"}
    assert "latency" in console.export_text()
    shown = capfd.readouterr().err
    steps = (
        "loading the digits",
        "capturing",
        "stage 'weights'",
        "stage 'architecture'",
        "stage 'fine-tune'",
        "exporting",
        "measuring",
    )
    places = [shown.index(step) for step in steps]
    assert places == sorted(places)
