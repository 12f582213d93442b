"""HTML cards for notebooks, of tables, bars and lists, with inline styles alone."""

import html
from collections.abc import Sequence
from typing import TypeAlias

from fxsurgery.printable import printable

ACCENT, NEUTRAL = "#3b82d6", "#8a94a0"
"""Colors that are readable on white and on black."""
MAX_LISTED = 8
"""Number of entries of a list that a card shows."""
_CELL = (
    "padding:.15em .8em .15em 0;vertical-align:top;background:none;border:0;white-space:normal;overflow-wrap:anywhere"
)
_RULE = "border-bottom:1px solid rgba(128,128,128,.35)"


class Html(str):
    """Markup; any other text is escaped before it becomes part of some."""

    __slots__ = ()


Content: TypeAlias = str | Html


def escaped(content: Content) -> Html:
    r"""Return text as markup; markup stays as it is.

    Example:
        >>> escaped("a < b\x1b")
        'a &lt; b\\x1b'
    """
    return content if isinstance(content, Html) else Html(html.escape(printable(content)))


def card(title: str, *parts: Content) -> str:
    """Return what a notebook shows of an object: a title, and paragraphs, tables and figures below it."""
    inner = "".join(
        part if isinstance(part, Html) else f"<p style='margin:.3em 0'>{escaped(part)}</p>" for part in parts
    )
    return (
        "<div style='max-width:60em;line-height:1.45'>"
        f"<div style='font-weight:600;margin-bottom:.3em'>{escaped(title)}</div>{inner}</div>"
    )


def table(header: Sequence[str], rows: Sequence[Sequence[Content]]) -> Html:
    """Return a table. Its first column and those with markup, such as bars, are aligned left, all others right."""
    left = {0, *(i for row in rows for i, content in enumerate(row) if isinstance(content, Html))}
    sides = ["left" if i in left else "right" for i in range(len(header))]
    head = "".join(
        f"<th style='{_CELL};{_RULE};text-align:{side};font-weight:500;opacity:.75'>{escaped(name)}</th>"
        for side, name in zip(sides, header, strict=True)
    )
    cells = (
        "".join(f"<td style='{_CELL};text-align:{side}'>{escaped(c)}</td>" for side, c in zip(sides, row, strict=True))
        for row in rows
    )
    body = "".join(f"<tr style='background:none'>{row}</tr>" for row in cells)
    style = "border-collapse:collapse;font-variant-numeric:tabular-nums;margin:.3em 0;font-size:.95em"
    return Html(f"<table style='{style}'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")


def bar(share: float, label: str = "", *, color: str = ACCENT) -> Html:
    """Return a horizontal bar, with a label after it.

    Args:
        share: fraction of the full length, 0 to 1.
        label: text behind the bar.
        color: color of the bar.
    """
    width = f"{8 * min(max(share, 0.0), 1.0):.2f}em"
    block = f"<span style='display:inline-block;height:.7em;width:{width};background:{color};margin-right:.5em'></span>"
    return Html(f"<span style='white-space:nowrap;display:inline-block;text-align:left'>{block}{escaped(label)}</span>")


def listing(title: str, entries: Sequence[Content], *, limit: int = MAX_LISTED) -> Html:
    """Return a list under a title, cut after `limit` entries; nothing if there are none."""
    if not entries:
        return Html("")
    left = len(entries) - limit
    shown = [*map(escaped, entries[:limit]), *([Html(f"and {left} more")] if left > 0 else [])]
    items = "".join(f"<li style='overflow-wrap:anywhere'>{entry}</li>" for entry in shown)
    head = f"<div style='margin-top:.4em;opacity:.75'>{escaped(title)}</div>"
    return Html(f"{head}<ul style='margin:.1em 0 .3em;padding-left:1.4em'>{items}</ul>")
