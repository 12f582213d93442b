"""Fashion-MNIST is there for the tests that are marked `dataset`, and for no other."""

from pathlib import Path

import pytest

from benchmarks.data import ROOT_VARIABLE


@pytest.fixture(autouse=True)
def _without_dataset(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reads the installed set by mistake fails on every machine, not on a clean one alone."""
    if request.node.get_closest_marker("dataset") is None:
        monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path / "not installed"))
