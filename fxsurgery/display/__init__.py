"""Notebook views: HTML cards and SVG figures that need no script, no style sheet and no network.

Text takes the color of what surrounds it, so that both are readable in light and dark mode. All text is escaped.
"""

from fxsurgery.display.figure import Figure
from fxsurgery.display.html import Html, bar, card, listing, table

__all__ = ["Figure", "Html", "bar", "card", "listing", "table"]
