"""The documentation as pages: `make docs`. The source is the whole tree, so links lead where they lead in it.

Two things are made when the pages are: the options of every command, and what docstrings say. What comes out
is looked through: a page fetches nothing from elsewhere, and names no folder of the machine that made it.
"""

import re
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Any

import typer
from typer.cli import get_docs_for_click
from typer.main import get_command

from midstream import cli

ROOT = Path(__file__).parents[1]

project = "midstream"
author = "The midstream authors"
version = release = version_of("midstream").partition("+")[0]
extensions = ["myst_parser", "sphinx.ext.autodoc"]

include_patterns = ["docs/**", "bench/docs/**", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md"]
exclude_patterns = [".*", "build", "dist", "src", "tests", "tools", "examples"]
root_doc = "docs/index"
nitpicky = True
nitpick_ignore_regex = [  # what other packages describe, and what a reader is given but makes no use of
    ("py:.*", r"DTypeLike|(numpy|np|npt|annotated_types|pyarrow|pydantic)\..*"),
    ("py:.*", r"(collections|datetime|ipaddress|os|pathlib|subprocess|types)\..*"),
    ("py:.*", r"midstream\.(config\.\w+Section|hardworker\.source\.Source|lab\.(lab\.[TP]|cpu\._Lab))"),
    ("py:.*", r"midstream\.packet\.(link\.Carried|capture\.Readable)"),
]

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_block"]
suppress_warnings = ["misc.highlighting_failure"]  # configuration.md shows files with faults

autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "midstream"
html_copy_source = False
html_show_sourcelink = False
html_extra_path = ["_site"]

COMMANDS = "docs/commands"
ELSEWHERE = re.compile(
    r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"(?:https?:)?//[^\"]*\""
    r"|url\(['\"]?(?:https?:)?//|@import\b"
)


def options(_: Any, name: str, source: list[str]) -> None:
    """Every command with its arguments and options, as `--help` has them."""
    if name != COMMANDS:
        return
    command = get_command(cli.app(cli.COMMANDS))
    context = typer.Context(command, info_name="midstream")
    text = get_docs_for_click(obj=command, ctx=context, name="midstream")
    text = re.sub(
        r"^\*\*Commands\*\*:\n\n(\* .*\n)+\n", "", text, flags=re.MULTILINE
    )  # they follow, one by one
    source[0] += "\n" + re.sub(r"^#", "##", text, flags=re.MULTILINE)


def as_markdown(_: Any, _what: str, _name: str, _object: object, _options: Any, lines: list[str]) -> None:
    """Docstrings mark code as Markdown does, and set examples off by four columns."""
    text = re.sub(r"(?<![`:\w])`([^`\n]+)`(?!`)", r"``\1``", "\n".join(lines))
    text = re.sub(r"\n\n(?=    \S)", "\n\n::\n\n", text)
    lines[:] = text.split("\n")


def briefly(*given: Any) -> tuple[str, str] | None:
    """A signature with NumPy's name for what it takes as a dtype, instead of what that stands for."""
    signature, result = given[-2:]
    if signature is None:
        return None
    return re.sub(r"type\[~?(?:typing\.)?Any\] \| [^=]*_DTypeDict \| str", "DTypeLike", signature), result


def look_through(app: Any, error: Exception | None) -> None:
    if error is not None:
        return
    for page in sorted(Path(app.outdir).rglob("*")):
        if page.suffix in (".html", ".css", ".js"):
            text = page.read_text(encoding="utf-8")
            if found := ELSEWHERE.search(text):
                raise SystemExit(f"{page}: fetches {found[0]}")
            if str(ROOT) in text:
                raise SystemExit(f"{page}: names this machine's {ROOT}")


def setup(app: Any) -> None:
    app.connect("source-read", options)
    app.connect("autodoc-process-docstring", as_markdown)
    app.connect("autodoc-process-signature", briefly)
    app.connect("build-finished", look_through)
