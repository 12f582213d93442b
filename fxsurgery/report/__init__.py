"""What an optimization came to, as one HTML page that stands alone."""

from fxsurgery.report.page import render, write
from fxsurgery.report.report_input import ReportInput
from fxsurgery.report.summary import summary

__all__ = ["ReportInput", "render", "summary", "write"]
