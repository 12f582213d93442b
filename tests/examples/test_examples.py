"""The examples run as they stand, keep to the budget, really learn, and write a file that ONNX Runtime agrees on."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from fxsurgery import Result

FOLDER = Path(__file__).parents[2] / "examples"

LEARNED = {
    "regression": ("R2", 0.4),
    "segmentation": ("mIoU", 0.35),
    "detection": ("AP50", 0.3),
    "text": ("accuracy", 0.4),
}
"""The metric of each, and what it reaches after a few steps; guessing is 0 for R2, under 0.3 for the others."""
ALSO = {"regression": "mean error (val)", "segmentation": "pixel accuracy (val)"}
"""The other figure of the metric."""


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check(name: str, result: Result, out: Path, least: float) -> None:
    before, after = result.cost
    assert after.macs <= 0.5 * before.macs
    assert result.metric_name == LEARNED[name][0]
    assert result.metrics["val"].after > least
    assert out.stat().st_size > 0


@pytest.mark.parametrize("name", LEARNED)
def test_an_example_learns_and_keeps_to_its_budget(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "small.onnx"
    result = load(name).main(quick=True, out=out)
    check(name, result, out, LEARNED[name][1])
    shown = capsys.readouterr().out
    assert f"{LEARNED[name][0]} (val)" in shown
    assert list(result.figures) == ([ALSO[name]] if name in ALSO else [])
    assert all(figure in shown for figure in (str(out), *result.figures))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "least"), [("regression", 0.5), ("segmentation", 0.8), ("detection", 0.9), ("text", 0.8)]
)
def test_an_example_is_good_with_its_default_arguments(name: str, least: float, tmp_path: Path):
    out = tmp_path / "small.onnx"
    check(name, load(name).main(out=out), out, least)


def test_every_example_is_tried():
    assert {path.stem for path in FOLDER.glob("*.py")} == {*LEARNED, "own_model"}


@pytest.mark.slow
def test_your_own_model_runs_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    load("own_model").main()
    assert (tmp_path / "small.onnx").stat().st_size > 0
    assert "accuracy (val)" in capsys.readouterr().out
