"""The pages of tasks name every script of examples/."""

import re

import guides


def test_every_script_is_named_by_a_page():
    named = {
        name for path in guides.PAGES for name in re.findall(r"\(\.\./(examples/\w+\.py)\)", guides.page_of(path.name))
    }
    assert named == {f"examples/{path.name}" for path in (guides.ROOT / "examples").glob("*.py")}
