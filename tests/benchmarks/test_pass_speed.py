"""The benchmark of the steps of a pass: each has its figure, and another checkout its ratio."""

import argparse
from pathlib import Path

import pytest

from benchmarks import pass_speed


def asked(**others: object) -> argparse.Namespace:
    plain = {"models": ["tiny"], "passes": ["fold-bn", "add-pool"], "size": 16, "batch": 2, "repeats": 1}
    return argparse.Namespace(**{**plain, "rival": False, **others})


def test_each_pass_has_the_seconds_of_its_steps():
    rows = list(pass_speed._rows(asked()))
    assert [(row["model"], row["pass"]) for row in rows] == [("tiny", "fold-bn"), ("tiny", "add-pool")]
    figures = [row[step] for row in rows for step in pass_speed.STEPS[:2]]
    assert min(figures) > 0
    assert {type(row[step]) for row in rows for step in pass_speed.STEPS} == {float}


def test_a_child_imports_the_checkout_that_is_named(tmp_path: Path):
    package = tmp_path / "fxsurgery"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit(3)")
    with pytest.raises(pass_speed.subprocess.CalledProcessError, match="exit status 3"):
        pass_speed._in_child(tmp_path, "tiny", asked())


def test_the_least_of_several_turns_is_compared():
    first = {"model": "m", "pass": "p", "analysis": 0.4, "rewrite": 0.2, "first proof": 1.0, "next proof": 0.5}
    second = {**first, "analysis": 0.2, "first proof": 3.0}
    (least,) = pass_speed._least([[first], [second]])
    assert least == {**first, "analysis": 0.2}
    found = pass_speed._compared(least, {**first, "next proof": 2.0})
    assert (found["analysis, ratio"], found["next proof, ratio"]) == (pytest.approx(0.5), pytest.approx(0.25))
