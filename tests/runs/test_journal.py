"""The journal: what was written is there, whatever happened while it was written."""

import hashlib
import os
from pathlib import Path

import pytest

from fxsurgery.errors import RunError
from fxsurgery.runs.journal import Journal
from nonempty import nonempty


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
    for length in nonempty(range(1, len(whole))):
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


def signed(body: str) -> bytes:
    """A line with a right checksum, whatever else it holds."""
    return f'{body[:-1]}, "sha256": "{hashlib.sha256(body.encode()).hexdigest()}"}}\n'.encode()


def test_no_changed_bit_goes_unseen(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    wanted = [{"n": 1.5}, {"name": "x"}, {"n": [1, 2]}]
    for record in wanted:
        Journal(path).append(record)
    whole = path.read_bytes()
    refused = list[str]()
    for at in nonempty(range(8 * len(whole))):
        changed = bytearray(whole)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        try:
            found = Journal(path).records
        except RunError as error:
            refused.append(str(error))
        else:
            assert found == wanted[:2]  # the last line break is gone, so its line says nothing
    assert len(refused) == 8 * (len(whole) - 1)
    assert all("journal.jsonl is damaged in line" in why for why in nonempty(refused))


def test_a_journal_goes_on_without_its_damaged_line_and_what_is_below(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    for number in range(3):
        Journal(path).append({"n": number})
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1].replace(b"1", b"7", 1) + lines[2])
    with pytest.raises(RunError, match=r"line 2 \(its checksum does not match\).* remove this line and all below it"):
        Journal(path)
    path.write_bytes(lines[0])
    Journal(path).append({"n": 5})
    assert Journal(path).records == [{"n": 0}, {"n": 5}]


def test_blocks_that_a_power_cut_left_empty_are_cut_off(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    Journal(path).append({"n": 1})
    with path.open("ab") as file:
        file.write(b"\0" * 4096)
    assert Journal(path).records == [{"n": 1}]
    Journal(path).append({"n": 2})
    assert Journal(path).records == [{"n": 1}, {"n": 2}]


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"n": 1}\n', "it has no checksum"),
        (signed('{"n": 1, "n": 2}'), "'n' stands twice"),
        (signed('{"n": 1, "sha256": "0"}'), "'sha256' stands twice"),
        (signed('{"n": ' + "[" * 10**5 + "]" * 10**5 + "}"), "deeper"),
        (signed('{"n": "\\ud800"}'), "surrogate"),
        (b"\n", "Expecting value"),
    ],
)
def test_a_line_that_no_run_writes_is_refused_whatever_its_checksum(tmp_path: Path, line: bytes, why: str):
    path = tmp_path / "journal.jsonl"
    path.write_bytes(signed('{"n": 1}') + line)
    with pytest.raises(RunError, match=f"journal.jsonl is damaged in line 2 .*{why}"):
        Journal(path)


def test_numbers_that_are_not_finite_come_back(tmp_path: Path):
    Journal(tmp_path / "journal.jsonl").append({"loss": float("inf"), "metric": float("nan")})
    [record] = Journal(tmp_path / "journal.jsonl").records
    assert record["loss"] == float("inf")
    assert record["metric"] != record["metric"]


def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to("nowhere")
    for name, why in (("pipe", "not a regular file"), (".", "not a regular file"), ("dangling", "No such file")):
        with pytest.raises(RunError, match=why):
            Journal(tmp_path / name)


def test_a_file_beyond_all_size_is_refused_at_once(tmp_path: Path):
    path = tmp_path / "journal.jsonl"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(RunError, match="larger than"):
        Journal(path)
