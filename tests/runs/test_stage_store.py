"""The place of a stage: weights before the journal, nothing half-written left, and what was given up stays so."""

from pathlib import Path

import pytest
import torch

from fxsurgery.errors import RunError, TrainingError
from fxsurgery.runs.run_directory import RunDir

WEIGHTS = {"w": torch.arange(3.0), "n": torch.tensor(2)}


def opened(path: Path, *, resume: bool = False) -> RunDir:
    return RunDir.open(path / "run", {"seed": 0}, resume=resume)


def stages(path: Path) -> set[str]:
    return {p.name for p in (path / "run" / "stages").iterdir()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_places_are_numbered_by_name_and_end_in_any_order(tmp_path: Path):
    with opened(tmp_path) as run:
        run.recall("value", lambda: 1)
        first, second = run.places(["First one", "Second"])
        second.finish([{"loss": 0.1}], WEIGHTS)
        assert first.record is None
        first.finish([], None, failure="it diverged", lost=2)
    assert stages(tmp_path) == {"003-second.weights"}
    with opened(tmp_path, resume=True) as run:
        run.recall("value", lambda: 2)
        again, other = run.places(["First one", "Second"])
    assert (again.record, other.record) == (first.record, second.record)
    assert again.record["lost"] == 2
    assert same(other.weights(), WEIGHTS)
    with pytest.raises(TrainingError, match="stage 'First one' has no weights: it diverged"):
        again.weights()


def test_weights_are_there_before_the_line_that_tells_of_them(tmp_path: Path):
    seen = []
    with opened(tmp_path) as run:
        [place] = run.places(["one"])
        note = place.note
        place.note = lambda record: seen.append(stages(tmp_path)) or note(record)
        place.finish([], WEIGHTS)
    assert seen == [{"001-one.weights"}]


def test_a_stage_that_has_not_ended_has_no_weights():
    [place] = RunDir().places(["one"])
    with pytest.raises(TrainingError, match="it has not ended"):
        place.weights()
    assert place.keeper() is None


def test_snapshots_are_gone_when_the_stage_has_ended_however_their_writer_did(tmp_path: Path):
    with opened(tmp_path) as run:
        one, other = run.places(["one", "other"])
        for place in (one, other):
            place.keeper().keep({"step": 1})
        (tmp_path / "run" / "stages" / ".001-one.partial.x1y2").write_text("half")
        one.finish([], None, failure="the time was up", stopped=True)
    assert stages(tmp_path) == {"002-other.partial"}
    assert other.keeper().last() == {"step": 1}


def test_weights_that_were_given_up_or_lost_are_a_clear_error(tmp_path: Path):
    with opened(tmp_path) as run:
        one, other = run.places(["one", "other"])
        for place in (one, other):
            place.finish([], WEIGHTS)
        one.forget()
        (tmp_path / "run" / "stages" / "002-other.weights").write_bytes(b"PK")
    with opened(tmp_path, resume=True) as run:
        one, other = run.places(["one", "other"])
        one.forget()
    with pytest.raises(RunError, match=r"001-one.weights is missing: the weights of stage 'one' were discarded"):
        one.weights()
    with pytest.raises(RunError, match=r"002-other.weights is damaged"):
        other.weights()
