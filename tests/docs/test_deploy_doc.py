"""The page of the deploy chain: its blocks run as they stand, in order, and print what it says they print."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from fxsurgery.deploy.chain import STEPS
from nonempty import nonempty

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def test_what_is_printed_is_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    space, printed, compared = dict[str, object](__name__="page"), "", 0
    for number, (kind, text) in nonempty(enumerate(BLOCKS)):
        if kind == "text":
            assert printed == text
            compared += 1
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(text, f"deploy.md, block {number}", "exec", dont_inherit=True), space)
        printed = out.getvalue()
    assert compared == 4


def test_every_step_has_a_row():
    rows = re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE)
    assert rows == [step.__name__ for step in STEPS.values()]
