"""The page of tasks: its blocks run as they stand, in order, and print what it says they print."""

import re

from guides import DOCS, Guide
from nonempty import nonempty

NAME = "tasks.md"


def test_what_is_printed_is_what_the_page_says():
    guide = Guide.run(NAME)
    assert len(guide.printed) == 6
    for printed, said in nonempty(guide.printed):
        assert printed == said


def test_every_script_that_the_page_names_is_there_and_every_script_is_named():
    named = set(re.findall(r"\(\.\./(examples/\w+\.py)\)", (DOCS / NAME).read_text(encoding="utf-8")))
    assert named == {f"examples/{path.name}" for path in (DOCS.parent / "examples").glob("*.py")}
