"""The report: what was measured, as Markdown and as one HTML page that needs no other file."""

from midstream.bench.report.html import html
from midstream.bench.report.markdown import markdown
from midstream.bench.report.results import Results

__all__ = ["Results", "html", "markdown"]
