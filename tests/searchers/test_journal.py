"""The journal: what was written is there, whatever happened while it was written."""

from pathlib import Path

import pytest

from fxsurgery.errors import RunError
from fxsurgery.searchers.journal import Journal


def test_what_was_appended_is_read_back_in_order(tmp_path: Path):
    journal = Journal(tmp_path / "journal.jsonl")
    wanted = [{"kind": "value", "value": 0.1 + 0.2}, {"kind": "stage", "records": [{"loss": 1e-30, "metric": None}]}]
    for record in wanted:
        journal.append(record)
    assert journal.records == wanted
    assert Journal(journal.path).records == wanted


def test_half_a_line_at_the_end_is_cut_off_and_the_next_begins_anew(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append({"n": 1})
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole + whole[:length])
        journal = Journal(path)
        assert journal.records == [{"n": 1}]
        journal.append({"n": 2})
        assert Journal(path).records == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize("line", [b"{not json}", b"[1, 2]", b"\xff\xfe"])
def test_a_damaged_line_is_an_error_that_names_it(tmp_path: Path, line: bytes):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(b'{"n": 1}\n' + line + b'\n{"n": 3}\n')
    with pytest.raises(RunError, match=r"journal\.jsonl is damaged in line 2"):
        Journal(path)
