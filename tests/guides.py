"""Guides in docs/ whose blocks run as they stand, in order."""

import contextlib
import io
import re
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).parents[1] / "docs"


@dataclass(frozen=True)
class Guide:
    """A guide after its blocks have run."""

    blocks: list[tuple[str, str]]
    """(language, text) of each block of Python, or of what the one before prints."""
    space: dict[str, object]
    """What its code has defined."""
    printed: list[tuple[str, str]]
    """What a block of Python printed, beside what the guide says that it prints."""

    @classmethod
    def run(cls, name: str) -> "Guide":
        """Run the blocks of `docs/name`."""
        text = (DOCS / name).read_text(encoding="utf-8")
        blocks = re.findall(r"^```(python|text)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        space, pairs, printed = dict[str, object](__name__="guide"), list[tuple[str, str]](), ""
        for number, (kind, block) in enumerate(blocks):
            if kind == "text":
                pairs.append((printed, block))
                continue
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block, f"{name}, block {number}", "exec", dont_inherit=True), space)
            printed = out.getvalue()
        return cls(blocks, space, pairs)
