"""An extension of griffe: doctests under `Example:` are shown as code, as those under `Examples:` are."""

import re
from typing import Any

import griffe


class DocstringExamples(griffe.Extension):
    """Name the section as griffe knows it."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:  # noqa: ANN401 -- as griffe calls it
        """Rewrite the headings of a docstring."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
