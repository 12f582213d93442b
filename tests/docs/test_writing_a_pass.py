"""The guide to writing a pass: its blocks run as they stand, in order, and print what it says they print."""

import contextlib
import io
import re
from pathlib import Path

import pytest

from nonempty import nonempty

GUIDE = Path(__file__).parents[2] / "docs" / "writing_a_pass.md"
BLOCKS = re.findall(r"^```(python|text)\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"\d+\.\d+(e[-+]\d+)?")
"""What depends on the machine: a measured error."""


@pytest.fixture(scope="module")
def run() -> tuple[dict[str, object], list[tuple[str, str]]]:
    """The namespace after all blocks, and what each printed beside what the guide says."""
    space, pairs, printed = dict[str, object](__name__="guide"), list[tuple[str, str]](), ""
    for number, (kind, text) in enumerate(BLOCKS):
        if kind == "text":
            pairs.append((printed, text))
            continue
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(text, f"{GUIDE.name}, block {number}", "exec", dont_inherit=True), space)
        printed = out.getvalue()
    return space, pairs


def test_what_is_printed_is_what_the_guide_says(run):
    assert len(run[1]) == 5
    for printed, said in nonempty(run[1]):
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", said)


def test_the_guides_own_tests_pass(run):
    found = {name: test for name, test in run[0].items() if name.startswith("test_")}
    assert len(found) == 3
    for test in found.values():
        test()


def test_the_pass_is_40_lines_without_the_blank_ones():
    assert BLOCKS[0][1].startswith('"""Pool before')
    assert sum(1 for line in BLOCKS[0][1].splitlines() if line.strip()) <= 40


def test_every_edit_that_the_guide_names_is_there():
    from fxsurgery.edit import Editor

    named = set(re.findall(r"edit\.(\w+)\(", GUIDE.read_text(encoding="utf-8")))
    assert len(named) > 10
    assert named <= set(dir(Editor))
