"""The guide to writing a pass: its own tests pass, and what it names is there."""

import re

import pytest

import guides
from fxsurgery.edit import Editor

NAME = "writing-a-pass.md"


@pytest.fixture(scope="module")
def guide() -> guides.Guide:
    return guides.run(NAME)


def test_the_guides_own_tests_pass(guide):
    tests = {name: test for name, test in guide.space.items() if name.startswith("test_")}
    assert len(tests) == 3
    for test in tests.values():
        test()


def test_the_pass_is_40_lines_without_the_blank_ones(guide):
    assert guide.blocks[0].text.startswith('"""Pool before')
    assert sum(1 for line in guide.blocks[0].text.splitlines() if line.strip()) <= 40


def test_every_edit_that_the_guide_names_is_there():
    named = set(re.findall(r"edit\.(\w+)\(", guides.page_of(NAME)))
    assert len(named) > 10
    assert named <= set(dir(Editor))
