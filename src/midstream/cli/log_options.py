"""What the subcommands of midstream log share: their options, and what these mean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from midstream.log.conditions import condition
from midstream.log.selection import Selection, moment

Url = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="Instead of config.toml's logger.database.")
]
Sensors = Annotated[list[str] | None, typer.Option("--sensor", metavar="IP", help="Only this; repeatable.")]
Streams = Annotated[list[str] | None, typer.Option("--stream", metavar="NAME", help="Only this; repeatable.")]
Connections = Annotated[
    list[int] | None, typer.Option("--connection", metavar="NUMBER", help="Only this; repeatable.")
]
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Not older: -10m, or 2026-11-25T16:00:00 (also with a zone)."),
]
Until = Annotated[str | None, typer.Option(metavar="TIME", help="Older than this; written as --since.")]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="TEST", help="'temperature>80', of a field or a JSON key; repeatable."),
]


def selected(
    streams: list[str] | None,
    sensors: list[str] | None,
    connections: list[int] | None,
    since: str | None,
    until: str | None,
    where: list[str] | None,
) -> Selection:
    """What the filters choose. ConfigError if one of them cannot be read."""
    now = datetime.now(UTC)
    return Selection(
        tuple(sensors or ()),
        tuple(connections or ()),
        moment(since, "--since", now) if since else None,
        moment(until, "--until", now) if until else None,
        tuple(condition(text) for text in where or ()),
        tuple(streams or ()),
    )


@contextmanager
def progress(what: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """A bar on standard error, if that is a terminal."""
    columns = (
        TextColumn(what),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("messages"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count: bar.advance(task, count)
