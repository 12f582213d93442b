"""Writing files: whole or not at all, and never in the place of what is no file."""

import os
from pathlib import Path

import pytest

from fxsurgery.errors import RunError
from fxsurgery.files import write_whole


def test_what_is_no_plain_file_is_left_alone(tmp_path: Path):
    pipe, folder = tmp_path / "pipe", tmp_path / "folder"
    os.mkfifo(pipe)
    folder.mkdir()
    for path in (pipe, folder, Path("/dev/null")):
        with pytest.raises(RunError, match="is not a regular file"):
            write_whole(path, b"mine")
    assert pipe.is_fifo()
    assert Path("/dev/null").is_char_device()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["folder", "pipe"]


def test_a_file_is_replaced_with_the_rights_of_a_new_one(tmp_path: Path):
    plain, path = tmp_path / "plain", tmp_path / "a"
    plain.write_bytes(b"")
    write_whole(path, b"one")
    write_whole(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode == plain.stat().st_mode
