"""midstream log."""

import json
import sys
from collections import deque
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from midstream import values
from midstream.cli.log_options import (
    Connections,
    Sensors,
    Since,
    Streams,
    Until,
    Url,
    Where,
    progress,
    selected,
)
from midstream.cli.options import DEFAULT_CONFIG, Config, Json, Stop, say, show, until_signalled
from midstream.errors import ConfigError, StoreError
from midstream.log import account, listing
from midstream.log import export as exporting
from midstream.log import plot as plotting
from midstream.log import verify as verifying
from midstream.log.decoding import decoded, printable
from midstream.log.location import located, opened
from midstream.log.messages import LogReader
from midstream.log.selection import duration, refuse_unknown_field
from midstream.storage import pruning
from midstream.storage.stored import StoredMessage

HOLE, PENDING = 7, 8
"""Exit codes of verify beside those of errors.py: what is stored is right, and it is not all."""

app = typer.Typer(help="Look at what the logger has stored.", no_args_is_help=True)


@app.command("list")
def list_(
    path: Config = DEFAULT_CONFIG,
    url: Url = None,
    streams: Streams = None,
    sensors: Sensors = None,
    connections: Connections = None,
    since: Since = None,
    until: Until = None,
    as_json: Json = False,
) -> None:
    """The connections: from whom, when, how much, and whether something is missing."""
    selection = selected(streams, sensors, connections, since, until, None)
    with opened(path, url) as database:
        told = database.told()
        extents = database.extents()
        everything = database.connections()
        found = account.accounts(database, told, everything, extents)
        rows = [
            listing.row(
                connection,
                extents.get(connection.id),
                found.holes.get(connection.id),
                found.by_id.get(connection.id),
            )
            for connection in selection.choose(everything)
        ]
    if as_json:
        print(json.dumps(rows + [listing.lost_row(each) for each in found.elsewhere(selection)]))
        return
    console = Console(width=None if sys.stdout.isatty() else 160, markup=False, emoji=False, highlight=False)
    console.print(listing.table(rows))
    for hole in found.holes.values():
        if hole.connection.id in {row["connection"] for row in rows}:
            print(hole)
    for line in listing.account_lines(found, selection):
        print(line)


@app.command("show")
def show_(
    path: Config = DEFAULT_CONFIG,
    url: Url = None,
    streams: Streams = None,
    sensors: Sensors = None,
    connections: Connections = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    last: Annotated[
        int | None, typer.Option("--last", "-n", min=0, metavar="N", help="Only the last N of them.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON Lines: an object a line.")] = False,
) -> None:
    """The messages, in the order in which they came: their fields, else as text or hexadecimal digits."""
    selection = selected(streams, sensors, connections, since, until, where)
    stop = Stop(0)
    with opened(path, url) as database:
        reader = LogReader(database, selection)
        if last is not None:
            if not where and not until:
                reader.skip_to_last(last)
            newest: deque[StoredMessage] = deque(maxlen=last)
            for piece in reader.read():
                newest.extend(piece)
            _print(newest, as_json)
            if not follow:
                return
            reader.refresh()
        with until_signalled(stop.set) if follow else nullcontext():
            for piece in reader.follow(stop) if follow else reader.read():
                _print(piece, as_json)
                if stop():
                    return


@app.command()
def export(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file; - for stdout.")],
    kind: Annotated[
        exporting.Format | None,
        typer.Option(
            "--format", help="Default: as FILE is called. parquet and mcap: pip install 'midstream[…]'."
        ),
    ] = None,
    path: Config = DEFAULT_CONFIG,
    url: Url = None,
    streams: Streams = None,
    sensors: Sensors = None,
    connections: Connections = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    payload: Annotated[
        bool, typer.Option("--payload", help="The bytes of each message too where its fields are named.")
    ] = False,
    as_json: Json = False,
) -> None:
    """The messages as a file for other programs: CSV, JSON Lines, Parquet, or MCAP (Foxglove).

    Of several streams, Parquet is a file for each: NAME-STREAM.parquet.
    """
    selection = selected(streams, sensors, connections, since, until, where)
    chosen = kind or _format(output)
    with opened(path, url) as database:
        reader = LogReader(database, selection)
        with progress("exporting", reader.total) as looked_at:
            count, files = exporting.export(reader, chosen, output, payload=payload, looked_at=looked_at)
    if not files:
        say(f"log export: {count:,} messages")
        return
    size, names = sum(file.stat().st_size for file in files), list(map(str, files))
    written = {"file": names[0]} if len(names) == 1 else {"files": names if as_json else ", ".join(names)}
    show({"messages": count, "bytes": size, **written}, as_json)


@app.command()
def plot(
    keys: Annotated[
        list[str], typer.Argument(metavar="FIELD...", help="Fields, or JSON keys such as gps.lat.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="A .png or .svg file.")],
    path: Config = DEFAULT_CONFIG,
    url: Url = None,
    streams: Streams = None,
    sensors: Sensors = None,
    connections: Connections = None,
    since: Since = None,
    until: Until = None,
    where: Where = None,
    as_json: Json = False,
) -> None:
    """Values over time as a picture: mean, and least and greatest, of each of 2000 pieces of the time."""
    selection = selected(streams, sensors, connections, since, until, where)
    with opened(path, url) as database:
        reader = LogReader(database, selection)
        for key in keys:
            refuse_unknown_field(key, key, reader.connections)
        spans = reader.extents.values()
        first = min((extent.first_ns for extent in spans), default=0)
        end = max((extent.last_ns + 1 for extent in spans), default=1)
        first, end = max(first, selection.since_ns or first), min(end, selection.until_ns or end)
        with progress("reading", reader.total) as looked_at:
            count = plotting.plot(reader, keys, output, (first, max(end, first + 1)), looked_at)
    show({"values": count, "file": str(output)}, as_json)


@app.command()
def verify(
    path: Config = DEFAULT_CONFIG,
    url: Url = None,
    streams: Streams = None,
    sensors: Sensors = None,
    connections: Connections = None,
    as_json: Json = False,
) -> None:
    """Is every message there that the hardworker held, once, and as it was received?

    Exit code 0 only if so; 6: something is damaged, or numbers are missing; 7: a hole, or forgotten; 8:
    all that is missing is pending.
    """
    selection = selected(streams, sensors, connections, None, None, None)
    faults = damaged = 0
    with opened(path, url) as database:
        chosen = selection.choose(database.connections())
        verdicts = []
        with progress("verifying", None) as looked_at:
            for verdict in verifying.verify(database, chosen, looked_at, selection):
                verdicts.append(verdict)
                faults += len(verdict.faults) + verdict.more
                damaged += not verdict.right
        name = database.name
    if as_json:
        print(json.dumps([listing.verdict_row(verdict) for verdict in verdicts]))
    else:
        for verdict in verdicts:
            print("\n".join(map(printable, listing.verdict_lines(verdict))))
    if faults:
        raise StoreError(
            f"{name}: {faults:,} faults, in {damaged:,} of {len(verdicts):,} connections: see above"
        )
    messages = sum(verdict.messages for verdict in verdicts)
    told = (
        f"{messages:,} messages of {sum(bool(each.connection) for each in verdicts):,} connections are right"
    )
    accounts = [verdict.account for verdict in verdicts if verdict.account]
    if not accounts:
        say(f"log verify: {told}; no hardworker has told this log what it held")
        return
    found = {verdict: sum(each.verdict == verdict for each in accounts) for verdict in account.WORST}
    lacking = [f"{count:,} {word}" for word, count in found.items() if count and word != "complete"]
    say(
        f"log verify: {told}"
        + (f"; of those that the hardworker held: {', '.join(lacking)}" if lacking else "")
    )
    if found["hole"] or found["forgotten"]:
        raise typer.Exit(HOLE)
    if found["pending"]:
        raise typer.Exit(PENDING)


@app.command()
def prune(
    path: Config = DEFAULT_CONFIG,
    url: Url = None,
    keep_age: Annotated[
        str | None, typer.Option(metavar="TIME", help="Instead of logger.keep_age, such as 30d.")
    ] = None,
    keep_size: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Instead of logger.keep_size, such as 10GiB.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and let it stay.")] = False,
    as_json: Json = False,
) -> None:
    """Remove the oldest messages, by age and by size. The logger may run meanwhile."""
    config, address = located(path, url)
    age = config.logger.keep_age if keep_age is None else duration(keep_age, "--keep-age").total_seconds()
    size = config.logger.keep_size if keep_size is None else _size(keep_size)
    if not age and not size:
        raise ConfigError(
            f"{config.path}: logger.keep_age = 0, logger.keep_size = 0: everything is kept; set one of them, "
            "or use --keep-age or --keep-size"
        )
    removed = pruning.prune(
        address,
        keep_ns=int(age * 1e9) if age else None,
        keep_bytes=size or None,
        dry_run=dry_run,
    )
    result = asdict(removed)
    before = result.pop("before_ns")
    show({**result, "before": None if before is None else exporting.iso(before)}, as_json)


def _size(text: str) -> int:
    try:
        return int(str(values.byte_count(int(text) if text.isdecimal() else text)))
    except ValueError as error:
        raise ConfigError(
            f"--keep-size {text}: must be a number of bytes, or one with KiB, MiB or GiB such as 10GiB"
        ) from error


def _format(output: Path) -> exporting.Format:
    names: dict[str, exporting.Format] = {
        ".csv": "csv",
        ".jsonl": "jsonl",
        ".parquet": "parquet",
        ".mcap": "mcap",
    }
    if output.suffix not in names:
        raise ConfigError(f"--output {output}: must end in {', '.join(names)}, or name a --format")
    return names[output.suffix]


def _print(messages: Iterable[StoredMessage], as_json: bool) -> None:
    piece = list(messages)
    for message, said in zip(piece, decoded(piece), strict=True):
        if as_json:
            print(json.dumps(exporting.record(message, said)))
        else:
            print(printable(listing.line(message, said)))
    sys.stdout.flush()
