"""Strict JSON: what two readers could take differently, or what could exhaust one, is refused with one error."""

import json
import os
import time
from pathlib import Path

import pytest

from fxsurgery.errors import ConfigError, RunError
from fxsurgery.strict_json import parse_json, read_json, read_regular


@pytest.mark.parametrize(
    "value", [{}, [], "a[[[{", 'a"\\', {"a": [1, -2.5e-3, None, True, "é\U0001f600"]}, 2**63, ["\\u" * 9, "]"]]
)
def test_what_the_json_module_writes_is_read(value: object) -> None:
    for ascii_alone in (True, False):
        assert parse_json(json.dumps(value, ensure_ascii=ascii_alone).encode(), where="x", max_depth=2) == value


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b'{"a": 1, "a": 2}', "'a' stands twice"),
        (b'[{"b": {"a": 1, "a": 1}}]', "'a' stands twice"),
        (b"[[[[[1]]]]]", "deeper than 4"),
        (b'{"a": ' * 10**6, "deeper than 4"),
        (b"[" * 10**6, "deeper than 4"),
        (b"[NaN]", "NaN is not"),
        (b"[-Infinity]", "-Infinity is not"),
        (b"[1e999]", "too large"),
        (b"9" * 5000, "digits"),
        (b'"\\ud800"', "surrogate"),
        (b"\xff\xfe[\x00]\x00", "utf-8"),
        ("[1]".encode("utf-16"), "utf-8"),
        (b'["\xed\xa0\x80"]', "utf-8"),
        (b"\xef\xbb\xbf[]", "BOM"),
        (b"", "Expecting value"),
        (b"[1] []", "Extra data"),
        (b"[1,]", ""),
        (b'["\n"]', "control character"),
    ],
)
def test_anything_else_is_refused(content: bytes, why: str) -> None:
    with pytest.raises(RunError, match=f"^here is damaged: .*{why}"):
        parse_json(content, where="here", max_depth=4)


def test_a_long_string_that_never_ends_is_refused_at_once() -> None:
    begun = time.monotonic()
    for content in (b'"' + b'\\"' * 10**6, b'"' * (10**6 + 1), b'"' + b"\\" * (10**6 + 1)):
        with pytest.raises(RunError, match="damaged"):
            parse_json(content, where="here")
    assert time.monotonic() - begun < 10


def test_numbers_that_are_not_finite_are_read_where_the_caller_allows_them() -> None:
    found = parse_json(b"[Infinity, -Infinity, NaN, 1e999]", where="x", allow_nan=True)
    assert found[0] == -found[1] == found[3] == float("inf")
    assert found[2] != found[2]


def test_the_caller_names_the_error() -> None:
    with pytest.raises(ConfigError, match=r"a\.json, line 3 is damaged"):
        parse_json(b"{", where="a.json, line 3", error=ConfigError)


def test_only_a_regular_file_of_bounded_size_is_read(tmp_path: Path) -> None:
    plain, pipe = tmp_path / "plain", tmp_path / "pipe"
    plain.write_bytes(b"[1, 2]")
    os.mkfifo(pipe)
    (tmp_path / "link").symlink_to(plain)
    (tmp_path / "link to pipe").symlink_to(pipe)
    assert read_json(tmp_path / "link", max_bytes=6) == [1, 2]
    assert read_regular(plain, max_bytes=6) == b"[1, 2]"
    with pytest.raises(RunError, match="larger than 5 bytes"):
        read_json(plain, max_bytes=5)
    for path in (pipe, tmp_path / "link to pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(RunError, match="is not a regular file"):
            read_json(path, max_bytes=100)
    with pytest.raises(RunError, match="No such file"):
        read_json(tmp_path / "nowhere", max_bytes=100)
