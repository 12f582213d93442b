"""The schema of a journal: what no run writes is refused, with the line, whatever its checksum."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from fxsurgery.errors import RunError
from fxsurgery.runs.journal import Journal
from fxsurgery.runs.records import is_amount, is_text, require_curve, require_known
from fxsurgery.training.progress import TrainingProgress
from fxsurgery.training.snapshot_schema import is_score

VALUE: dict[str, Any] = {"kind": "value", "name": "latency", "value": 1.5}
STAGE: dict[str, Any] = {
    "kind": "stage", "name": "weights", "records": [
        {"loss": float("nan"), "metric": None, "stage": "weights"}, {"loss": 0.5, "terms": {"penalty": 0.25}},
    ],
    "failure": None, "stopped": False, "weights": "0" * 64,
}  # fmt: skip
FAILED = {**{k: v for k, v in STAGE.items() if k != "weights"}, "failure": "it diverged", "lost": 2}
END: dict[str, Any] = {"kind": "end", "name": "result", "note": None, "files": {"result/result.json": "a" * 64}}


def journal(path: Path, *records: dict) -> Journal:
    written = Journal(path / "journal.jsonl")
    for record in records:
        written.append(record)
    return Journal(path / "journal.jsonl")


def test_what_runs_write_is_of_the_schema(tmp_path: Path):
    written = journal(tmp_path, VALUE, STAGE, FAILED, END)
    require_known(written)
    assert len(written.records) == 4


@pytest.mark.parametrize(
    ("record", "why"),
    [
        ({**VALUE, "kind": "other"}, "unknown kind"),
        ({**VALUE, "kind": ["value"]}, "unknown kind"),
        ({"name": "x", "value": 1}, "unknown kind"),
        ({**VALUE, "more": 1}, "unknown key 'more'"),
        ({"kind": "value", "name": "x"}, "no key 'value'"),
        ({**VALUE, "name": 3}, "'name' is not of its type"),
        ({**STAGE, "records": {"loss": 1}}, "'records' is not of its type"),
        ({**STAGE, "records": [[1]]}, "'records' is not of its type"),
        ({**STAGE, "records": [{"loss": [1.0]}]}, "'records' is not of its type"),
        ({**STAGE, "records": [{"terms": {"penalty": [1.0]}}]}, "'records' is not of its type"),
        ({**STAGE, "stopped": 0}, "'stopped' is not of its type"),
        ({**STAGE, "failure": 1}, "'failure' is not of its type"),
        ({**STAGE, "weights": "../../etc"}, "'weights' is not of its type"),
        ({**FAILED, "lost": True}, "'lost' is not of its type"),
        ({**STAGE, "failure": "no"}, "either weights or a failure"),
        ({**FAILED, "failure": None}, "either weights or a failure"),
        ({**END, "files": ["result.json"]}, "'files' is not of its type"),
        ({**END, "files": {"result.json": 1}}, "'files' is not of its type"),
    ],
)
def test_anything_else_is_refused_with_its_line(tmp_path: Path, record: dict, why: str):
    with pytest.raises(RunError, match=rf"journal\.jsonl is damaged in line 2 \(.*{why}.*start in another directory"):
        require_known(journal(tmp_path, VALUE, record))


def test_values_are_told_from_what_is_none():
    score = {"metric": 0.5, "loss": float("inf"), "samples": 3, "figures": {"f1": 0.25}}
    assert is_score(score)
    assert not any(
        map(is_score, (None, [], {}, {**score, "more": 1}, {**score, "loss": "1"}, {**score, "figures": []}))
    )
    assert not is_score({**score, "figures": {"f1": None}})
    assert is_amount(0)
    assert not any(map(is_amount, (-1.0, float("nan"), "1", None, True, [1])))
    assert is_text("2026-01-02")
    assert not is_text(3)


def test_a_curve_has_the_fields_of_a_training_and_no_other():
    point = {f.name: 1.0 for f in fields(TrainingProgress) if f.name != "terms"} | {"stage": "weights", "metric": None}
    named = {**point, "terms": {"penalty": 0.5, "task": float("nan")}}
    require_curve([point, named], "weights")
    wrong = [{**point, "terms": terms} for terms in ({"penalty": "0.5"}, {1: 0.5}, [0.5], None)]
    fewer = {k: v for k, v in named.items() if k != "loss"}
    wrong += [{"loss": 1.0}, fewer, {**point, "more": 1}, {**point, "step": "1"}, {**point, "stage": 1}]
    for other in (*([point, given] for given in wrong), {}, None):
        with pytest.raises(RunError, match="training curve of stage 'weights' is malformed"):
            require_curve(other, "weights")
