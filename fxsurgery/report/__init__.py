"""What an optimisation came to, as one HTML page that stands alone."""

from fxsurgery.report.lines import summary
from fxsurgery.report.page import render, write
from fxsurgery.report.told import Told

__all__ = ["Told", "render", "summary", "write"]
