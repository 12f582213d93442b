r"""Escaping of text from models, metrics and files, so that it is safe to print.

Characters that move the cursor, color the following text, ring the bell, or reorder text are written as escapes:
`\x1b`, `\u202e`. All text for people is escaped here when it is composed (`lines`) or shown.
"""

import re
from collections.abc import Iterable

_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f"  # control characters, C0 and C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # direction
    "\u2028\u2029"  # line and paragraph separators
    "\ufeff\ufff9-\ufffb"  # byte order mark, annotations
    "\ud800-\udfff"  # halves of a surrogate pair, which no encoding writes
    "\U000e0000-\U000e007f]"  # tags
)


def printable(text: str, keep: str = "") -> str:
    r"""Return `text` with characters that are not shown as themselves written out.

    Args:
        text: from anywhere.
        keep: characters that stay, such as line breaks in a text of several lines.

    Example:
        >>> print(printable("red\x1b[31m"))
        red\x1b[31m
    """
    return _UNSEEN.sub(lambda found: found[0] if found[0] in keep else _written_out(found[0]), text)


def lines(parts: Iterable[str]) -> str:
    r"""Return the text of these lines: each stays one, whatever is in it.

    Example:
        >>> print(lines(["one", "two\nthree"]))
        one
        two\nthree
    """
    return "\n".join(map(printable, parts))


def _written_out(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
