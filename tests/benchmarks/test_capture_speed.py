"""The benchmark of capture measures one model, and writes a table with the ratio to another checkout."""

import sys

import pytest

from benchmarks import capture_speed, tables


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of resident memory is read from /proc")
def test_a_capture_is_measured():
    found = capture_speed.measure("squeezenet1_1", 64)
    assert found["seconds"] > found["forward"] > 0
    assert found["memory"] > 0


def test_the_table_tells_the_ratio(monkeypatch, tmp_path):
    def run(checkout, name, size):
        slower = 3.0 if checkout == tmp_path else 1.0
        return {"seconds": 2.0 * slower, "memory": slower, "forward": 0.5}

    monkeypatch.setattr(capture_speed, "_run", run)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    monkeypatch.setattr(tables.write, "__defaults__", (tmp_path,))
    capture_speed.main(["resnet18", "resnet50"], tmp_path, 2, 64)
    page = (tmp_path / "capture-speed.md").read_text()
    assert "| resnet18 | 2.00 | 4.0 | 1.0 | 6.00 | 3.0 | 3.00 |" in page
    assert "median over the models: 3.00" in page
    capture_speed.main(["resnet18"], None, 1, 64)
    page = (tmp_path / "capture-speed.md").read_text()
    assert "| resnet18 | 2.00 | 4.0 | 1.0 |\n" in page
    assert "before" not in page
