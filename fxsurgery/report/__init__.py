"""The report of an optimization: one HTML page without other files, its pictures, and its summary as text."""

from fxsurgery.report.notebook import NotebookView
from fxsurgery.report.page import render, write
from fxsurgery.report.report_input import ReportInput
from fxsurgery.report.summary import summary

__all__ = ["NotebookView", "ReportInput", "render", "summary", "write"]
