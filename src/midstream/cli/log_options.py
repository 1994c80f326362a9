"""What the subcommands of midstream log share: their options, and what these mean."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from midstream import config as configuration
from midstream import fields, network
from midstream.cli.options import DEFAULT_CONFIG
from midstream.database_url import check
from midstream.errors import ConfigError
from midstream.log.conditions import condition
from midstream.log.selection import Selection, moment
from midstream.storage.databases import open_log
from midstream.storage.stored import Log
from midstream.toml import show

Url = Annotated[
    str | None, typer.Option("--database", metavar="URL", help="Instead of config.toml's logger.database.")
]
Sensors = Annotated[list[str] | None, typer.Option("--sensor", metavar="IP", help="Only this; repeatable.")]
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
    )


def located(path: Path, url: str | None) -> tuple[configuration.Config, str]:
    """The configuration, which may be missing where the database is named. Raises ConfigError."""
    if url is not None:
        try:
            check(url)
        except ValueError as error:
            raise ConfigError(f"--database {show(url)}: {error}; correct it") from error
    if url is not None and path == DEFAULT_CONFIG and not path.exists():
        return configuration.Config(), url
    config = configuration.load(path)
    return config, url or config.database_url


def opened(path: Path, url: str | None) -> Log:
    """The database for reading; config.toml's framing and fields serve what was stored without."""
    config, address = located(path, url)
    layout = None
    if config.data.field:
        size = config.data.size or network.load(config.const_path).size
        layout = fields.layout(config, size)
    return open_log(address, framing=config.data.framing, layout=layout)


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
