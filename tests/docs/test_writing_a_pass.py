"""The guide to writing a pass: its blocks run as they stand, in order, and print what it says they print."""

import re

import pytest

from guides import DOCS, Guide
from nonempty import nonempty

NAME = "writing-a-pass.md"
NUMBER = re.compile(r"\d+\.\d+(e[-+]\d+)?")
"""What depends on the machine: a measured error."""


@pytest.fixture(scope="module")
def guide() -> Guide:
    return Guide.run(NAME)


def test_what_is_printed_is_what_the_guide_says(guide):
    assert len(guide.printed) == 5
    for printed, said in nonempty(guide.printed):
        assert NUMBER.sub("#", printed) == NUMBER.sub("#", said)


def test_the_guides_own_tests_pass(guide):
    found = {name: test for name, test in guide.space.items() if name.startswith("test_")}
    assert len(found) == 3
    for test in found.values():
        test()


def test_the_pass_is_40_lines_without_the_blank_ones(guide):
    assert guide.blocks[0][1].startswith('"""Pool before')
    assert sum(1 for line in guide.blocks[0][1].splitlines() if line.strip()) <= 40


def test_every_edit_that_the_guide_names_is_there():
    from fxsurgery.edit import Editor

    named = set(re.findall(r"edit\.(\w+)\(", (DOCS / NAME).read_text(encoding="utf-8")))
    assert len(named) > 10
    assert named <= set(dir(Editor))
