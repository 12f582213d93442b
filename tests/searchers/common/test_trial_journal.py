"""The trials of a generation in the journal: read back as they were made, and refused where they cannot be."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fxsurgery.errors import RunError
from fxsurgery.runs.run_directory import RunDir
from fxsurgery.searchers.common import trial_journal
from fxsurgery.searchers.common.trial_journal import Generation, recall_generation
from fxsurgery.searchers.common.trials import Status, Trial
from nonempty import nonempty


def trial(number: int, status: Status = "undecided", reason: str = "not decided") -> Trial:
    return Trial(
        number=number, parent=1, generation=2, operation="add-units", move=f"widen(add=(('0',{number}),))",
        costs={"params": 10 * number, "macs": 7, "peak_activation_bytes": 0.5}, status=status, reason=reason,
    )  # fmt: skip


MADE = Generation(
    trials=(trial(3), trial(4, "duplicate", "duplicate of 3")),
    hashes=("a", "a"),
    rejected={"remove-units: nothing would change": 2, "add-cell: an output is not finite": 1},
    crashes=("widen crashed",),
)


def recalled(folder: Path, make: Callable[[], Generation], *, resume: bool = True) -> Generation:
    with RunDir.open(folder, {}, resume=resume) as run:
        return recall_generation(run, 2, [1, 2], 3, make)


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """A run that was killed after it had made a generation."""
    assert recalled(tmp_path, lambda: MADE, resume=False) == MADE
    (tmp_path / "stages").mkdir(exist_ok=True)
    (tmp_path / "stages" / "001-x.partial").touch()
    return tmp_path


def test_a_resumed_run_reads_the_trials_and_makes_none(kept: Path):
    found = recalled(kept, lambda: pytest.fail("made again"))
    assert found == MADE
    assert list(found.rejected) == nonempty(MADE.rejected)
    assert [type(value) for value in found.trials[0].costs.values()] == [int, int, float]


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    plain = json.loads(json.dumps(trial_journal._to_plain(MADE)))
    change(plain)
    return plain


@pytest.mark.parametrize(
    "change",
    [
        lambda plain: plain.update(more=1),
        lambda plain: plain.pop("hashes"),
        lambda plain: plain["hashes"].pop(),
        lambda plain: plain["trials"].pop(),
        lambda plain: plain["trials"].reverse(),
        lambda plain: plain["trials"][0].update(number=4),
        lambda plain: plain["trials"][0].update(parent=0),
        lambda plain: plain["trials"][0].update(parent=None),
        lambda plain: plain["trials"][0].update(generation=3),
        lambda plain: plain["trials"][0].update(status="lucky"),
        lambda plain: plain["trials"][0].update(score=0.5),
        lambda plain: plain["trials"][0]["costs"].pop("macs"),
        lambda plain: plain["trials"][0]["costs"].update(watts=3),
        lambda plain: plain["trials"][0]["costs"].update(params="10"),
        lambda plain: plain["rejected"].update(why="often"),
    ],
)
def test_what_are_no_trials_of_this_generation_is_refused(kept: Path, change):
    lines = (kept / "journal.jsonl").read_text().splitlines()
    assert len(lines) == 1
    (kept / "journal.jsonl").unlink()
    with RunDir.open(kept, {}, resume=True) as run:
        run.recall("trials of generation 2", lambda: changed(change))
    with pytest.raises(RunError, match="'trials of generation 2' is not of its type"):
        recalled(kept, lambda: pytest.fail("made again"))
