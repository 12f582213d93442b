"""The page of settings has each with its default and a text, and is what `docs/list_settings.py` gives."""

import sys
from dataclasses import fields
from pathlib import Path

from fxsurgery.searchers.methods import METHODS

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_that_of_these_settings():
    sys.path.insert(0, str(DOCS))
    try:
        import list_settings

        page = list_settings.page()
    finally:
        sys.path.remove(str(DOCS))
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == page, "run: python docs/list_settings.py"
    for method in METHODS.values():
        for field in fields(method.settings):
            [row] = [line for line in page.splitlines() if line.startswith(f"| `{field.name}` |")]
            assert len(row.split("|")[3].strip()) > 10, f"{field.name} has no text under it"
