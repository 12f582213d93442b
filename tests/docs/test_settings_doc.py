"""The page of settings has each with its default and a text, and is what `docs/list_settings.py` gives."""

import sys
from dataclasses import fields
from pathlib import Path

from fxsurgery.searchers.methods import METHODS
from nonempty import nonempty

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_that_of_these_settings():
    sys.path.insert(0, str(DOCS))
    try:
        import list_settings

        page, sections = list_settings.page(), list_settings.sections()
        told = {settings: list_settings.told_of(settings) for settings in sections}
    finally:
        sys.path.remove(str(DOCS))
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == page, "run: python docs/list_settings.py"
    for method in nonempty(METHODS.values()):
        assert set(nonempty(method.settings.__mro__[:-1])) <= set(sections)
        for field in nonempty(fields(method.settings)):
            texts = [told[kind][field.name] for kind in method.settings.__mro__[:-1] if field.name in told[kind]]
            assert len(texts[0]) > 6, f"{method.name}: {field.name} has no text under it"
            assert f"| `{field.name}` | `{field.default!r}` | {texts[0]} |" in page
