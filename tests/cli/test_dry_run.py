"""`--dry-run` refuses what the run itself would refuse before it trains, in the same words."""

from pathlib import Path

import pytest

import fxsurgery
from nonempty import nonempty

REFUSED = {
    "a run directory with a run": "--run-dir used",
    "a run directory with other settings": "--run-dir used --resume --seed 3",
    "a run directory with other files": "--run-dir .",
    "a run directory that is a file": "--run-dir sample_nets.py",
    "resuming without a directory": "--resume",
    "a budget that cannot be reached": "--budget macs=0.0001",
    "a budget and a penalty": "--budget macs=0.5 --set penalty=0.1",
    "no goal for evolution": "--spend epochs=3",
    "workers without processes": "--workers 3",
    "an unknown device": "--device abacus",
    "an unknown target": "--target abacus --budget latency_ms=0.5",
    "a file in the place of a directory": "--out sample_nets.py",
    "a report into a directory": "--report .",
    "a file on the way": "--onnx sample_nets.py/a.onnx",
}


def errors_of(result) -> list[str]:
    return [line for line in result.stderr.splitlines() if line.startswith(("error: ", "  "))]


@pytest.fixture
def used(here: Path, optimized: Path) -> Path:
    """The directory of a run that has ended, in the current folder."""
    (here / "used").symlink_to(optimized / "run")
    return here


@pytest.mark.parametrize("flags", REFUSED.values(), ids=REFUSED)
def test_a_dry_run_refuses_what_the_run_refuses(used: Path, give, seen: list[str], monkeypatch, flags: str):
    def trained(*_args: object, **_options: object) -> None:
        raise AssertionError("it trains")

    monkeypatch.setattr("fxsurgery.searchers.session.Session.trained", trained)
    command = ["optimize", "sample_nets:Net", *seen, *flags.split()]
    planned, made = give(*command, "--dry-run"), give(*command)
    assert planned.exit_code in {1, 2}, planned.output
    assert nonempty(errors_of(planned)) == errors_of(made)
    assert planned.exit_code == made.exit_code


def test_a_dry_run_of_a_run_to_resume_changes_nothing(used: Path, give, seen: list[str], optimized: Path):
    before = {path: path.stat().st_mtime_ns for path in (optimized / "run").rglob("*") if path.name != ".lock"}
    flags = ["--test-data", "sample_data:val", "--run-dir", "used", "--resume", "--dry-run"]
    result = give("optimize", "sample_nets:Net", *seen, *flags)
    assert result.exit_code == 0, result.output
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_plan_refuses_the_run_directory_in_python_too(tmp_path: Path):
    (tmp_path / "other.txt").touch()
    from torch import nn

    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(fxsurgery.RunError, match=r"other\.txt and no run"):
        fxsurgery.plan(model, run_dir=tmp_path, verbose=False)
    with pytest.raises(fxsurgery.SurgeryError, match="resume=True continues"):
        fxsurgery.plan(model, resume=True, verbose=False)
