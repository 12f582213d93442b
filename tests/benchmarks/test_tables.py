import json
import math

import pytest
import torch

from benchmarks.tables import Header, Table, header, interval, markdown, write

ABOUT = Header(command="python -m benchmarks.x", date="2026-01-02", cpu="Some CPU", cores=2, torch="2.15.0")
TABLE = Table(
    title="Accuracy",
    columns={"method": "", "accuracy": ".2f", "MACs": ",d"},
    rows=[
        {"method": "dnal", "accuracy": [90.0, 91.0, 92.0], "MACs": 1_234_567},
        {"method": "a|b", "accuracy": None, "MACs": 5},
    ],
    seeds=[0, 1, 2],
    notes="Selected on validation.",
)


def test_interval_is_students():
    found = interval([1.0, 2.0, 3.0])
    assert found.mean == 2
    # t(0.975, 2) = 4.30265, standard deviation 1
    assert found.half_width == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)


def test_one_seed_tells_no_spread():
    assert math.isinf(interval([3.0]).half_width)


def test_no_seed_is_an_error():
    with pytest.raises(ValueError, match="at least one"):
        interval([])


def test_the_page_has_header_table_and_notes():
    assert markdown(TABLE, ABOUT) == (
        "# Accuracy\n\n"
        "```text\ncommand: python -m benchmarks.x\ndate: 2026-01-02\ncpu: Some CPU\ncores: 2\ntorch: 2.15.0\n"
        "seeds: 0, 1, 2\n```\n\n"
        "| method | accuracy | MACs |\n"
        "| --- | --- | --- |\n"
        "| dnal | 91.00 ± 2.48 | 1,234,567 |\n"
        "| a\\|b | - | 5 |\n\n"
        "Mean over the seeds ± 95 % t-interval of the mean.\n\n"
        "Selected on validation.\n"
    )


def test_one_seed_is_shown_as_one_seed():
    table = Table("T", {"accuracy": ".1f"}, [{"accuracy": [90.0]}], seeds=[0])
    assert "| 90.0 (one seed) |" in markdown(table, ABOUT)


def test_page_and_raw_values_are_written(tmp_path):
    page = write(TABLE, "accuracy", tmp_path / "results")
    assert page == tmp_path / "results" / "accuracy.md"
    assert "| dnal | 91.00 ± 2.48 |" in page.read_text(encoding="utf-8")
    raw = json.loads(page.with_suffix(".json").read_text(encoding="utf-8"))
    assert raw["rows"][0]["accuracy"] == [90.0, 91.0, 92.0]
    assert raw["seeds"] == [0, 1, 2]


def test_a_cell_without_a_column_is_refused(tmp_path):
    table = Table("T", {"a": ""}, [{"a": "x", "b": "y"}], seeds=[0])
    with pytest.raises(ValueError, match="without a column: b"):
        write(table, "t", tmp_path)


def test_header_names_this_machine_and_no_path_of_it(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    script = str(tmp_path / "benchmarks" / "run.py")
    monkeypatch.setattr("sys.orig_argv", ["/somewhere/bin/python", script, "--name", "two words"])
    about = header()
    assert about.command == "python benchmarks/run.py --name 'two words'"
    assert about.torch == torch.__version__
    assert about.cores >= 1
    assert about.cpu
