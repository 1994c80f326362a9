"""The report: what was measured, as Markdown and as one HTML page that needs no other file."""

from midstream_bench.report.html import html
from midstream_bench.report.markdown import markdown
from midstream_bench.report.results import Results

__all__ = ["Results", "html", "markdown"]
