"""The page of tasks: its blocks run as they stand, in order, and print what it says they print."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from nonempty import nonempty

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "tasks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(python|text)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def pairs() -> list[tuple[str, str]]:
    """What each block printed, beside what the page says."""
    space, found, printed = dict[str, object](__name__="page"), list[tuple[str, str]](), ""
    for number, (kind, text) in enumerate(BLOCKS):
        if kind == "text":
            found.append((printed, text))
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(text, f"tasks.md, block {number}", "exec", dont_inherit=True), space)
        printed = out.getvalue()
    return found


def test_what_is_printed_is_what_the_page_says(pairs):
    assert len(pairs) == 6
    for printed, said in nonempty(pairs):
        assert printed == said


def test_every_script_that_the_page_names_is_there_and_every_script_is_named():
    named = set(re.findall(r"\(\.\./(examples/\w+\.py)\)", PAGE))
    assert named == {f"examples/{path.name}" for path in (DOCS.parent / "examples").glob("*.py")}
