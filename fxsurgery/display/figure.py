"""SVG figures: pictures that a notebook shows and that `save` writes to a file.

Shapes and text carry their own colors, so that a file needs no style sheet; text, ticks and grid lines are drawn in
`currentColor`, which is that of the notebook, and black on a white background in a file.
"""

import html
import re
from dataclasses import dataclass
from pathlib import Path

from typing_extensions import override

from fxsurgery.display.html import ACCENT, NEUTRAL, Html
from fxsurgery.errors import RunError
from fxsurgery.files import write_whole
from fxsurgery.printable import printable

__all__ = ["ACCENT", "NEUTRAL", "Box", "Figure", "element", "fitted", "text"]

WIDTH = 760.0
"""Width of a figure in pixels, unless it is shown in less room."""
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif"
_COORDINATES = re.compile(r"([ML])(-?[\d.]+) (-?[\d.]+)")


@dataclass(frozen=True)
class Box:
    """A rectangle of a figure, in pixels."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture: the last line of a notebook cell shows it, and `save` writes it to a file.

    Example:
        >>> Figure("Widths", "8 channels of 16", 100, "").save("widths.svg")  # doctest: +SKIP
    """

    title: str
    summary: str
    """The picture in words, for screen readers."""
    height: float
    """Height in pixels, of a width of `WIDTH`."""
    body: str
    """The SVG elements."""

    @property
    def svg(self) -> str:
        """The picture as an SVG document on a white background."""
        back = element("rect", width=WIDTH, height=self.height, fill="#ffffff")
        return self._document(
            back, f'xmlns="http://www.w3.org/2000/svg" width="{WIDTH:g}" height="{self.height:g}"', "#1a2026"
        )

    def save(self, path: str | Path) -> Path:
        """Write the picture to an SVG file.

        Args:
            path: the file, whose name ends in `.svg`; missing directories are created.

        Returns:
            The path of the file.

        Raises:
            RunError: the file cannot be written, or its name ends otherwise.
        """
        path = Path(path)
        if path.suffix.lower() != ".svg":
            raise RunError(f"path={str(path)!r}: a figure is written as SVG; use a name that ends in .svg")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, self.svg.encode("utf-8", "xmlcharrefreplace"))
        return path

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return self._document("", f'style="width:100%;max-width:{WIDTH:g}px;height:auto"', "currentColor")

    @override
    def __repr__(self) -> str:
        return printable(f"<Figure {self.title!r}: shown by a notebook; .save('figure.svg') writes it>")

    def _document(self, back: str, attributes: str, color: str) -> Html:
        label = html.escape(printable(f"{self.title}. {self.summary}"))
        head = f'<svg {attributes} viewBox="0 0 {WIDTH:g} {self.height:g}" role="img" aria-label="{label}"'
        font = f'color="{color}" fill="currentColor" font-family="{FONT}" font-size="12"'
        return Html(f"{head} {font}>{back}{self.body}</svg>")


def element(name: str, content: str = "", /, **attributes: float | str) -> str:
    """Return an SVG element; `content` is markup, and underscores in the names of attributes are hyphens."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{_value(value)}"' for key, value in attributes.items())
    return f"<{name}{written}>{content}</{name}>" if content else f"<{name}{written}/>"


def text(x: float, y: float, label: str, *, side: str = "start", muted: bool = False, bold: bool = False) -> str:
    """Return a line of text.

    Args:
        x: position in pixels of its start, middle or end, as `side` says.
        y: position of its baseline.
        label: any text, which is escaped.
        side: `start`, `middle` or `end`.
        muted: whether it is less prominent.
        bold: whether it is more prominent.
    """
    more: dict[str, float | str] = {"opacity": 0.7, "font_size": 11} if muted else {}
    more |= {"font_weight": 600} if bold else {}
    return element("text", html.escape(printable(label)), x=x, y=y, text_anchor=side, **more)


def fitted(path: str, box: Box, wide: float, high: float) -> str:
    """Return a path of `M` and `L` commands, drawn in a box of `wide` times `high` from (0, 0), moved into `box`."""

    def moved(found: re.Match[str]) -> str:
        x = box.x + float(found[2]) * box.width / wide
        y = box.y + float(found[3]) * box.height / high
        return f"{found[1]}{x:.2f} {y:.2f}"

    return _COORDINATES.sub(moved, path)


def _value(value: float | str) -> str:
    return html.escape(printable(value)) if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
