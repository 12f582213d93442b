"""The page of settings has each with its default and a text, and is what `tools/list_settings.py` gives."""

from dataclasses import fields
from pathlib import Path

import list_settings
from fxsurgery.searchers.methods import METHODS
from nonempty import nonempty

DOCS = Path(__file__).parents[2] / "docs"


def test_the_page_is_that_of_these_settings():
    page, sections = list_settings.page(), list_settings.sections()
    texts = {settings: list_settings.texts_of(settings) for settings in sections}
    assert (DOCS / "settings.md").read_text(encoding="utf-8") == page, "run: python tools/list_settings.py"
    for method in nonempty(METHODS.values()):
        assert set(nonempty(method.settings.__mro__[:-1])) <= set(sections)
        for field in nonempty(fields(method.settings)):
            text = next(texts[kind][field.name] for kind in method.settings.__mro__[:-1] if field.name in texts[kind])
            assert len(text) > 6, f"{method.name}: {field.name} has no text under it"
            assert f"| `{field.name}` | `{field.default!r}` | {text} |" in page
