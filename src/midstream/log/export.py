"""Messages to files of other programs, piece by piece: memory does not grow with the log.

A file gets its name when it is whole: an export that is broken off leaves none behind. Parquet is a table of
one stream, so several streams are several files.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, assert_never

from midstream.closing import Closing
from midstream.errors import ConfigError
from midstream.log.decoding import decoded, field_names, own_name, text_of
from midstream.log.messages import LogReader, nobody
from midstream.storage.stored import Arrival, StoredConnection, StoredMessage

Format = Literal["csv", "jsonl", "parquet", "mcap"]

_STDOUT = Path("-")
_ARRIVAL = ("arrived", "delay_ns", "delay_error_ns")  # columns of storage.stored.Arrival


class Exported(NamedTuple):
    """How many messages are in which files; in none if they went to standard output."""

    messages: int
    files: list[Path]


class ExportWriter(Closing, Protocol):
    """Writes pieces of messages to a stream that it does not own."""

    def write(self, messages: Sequence[StoredMessage]) -> None: ...


def export(
    reader: LogReader,
    kind: Format,
    path: Path,
    *,
    payload: bool = False,
    looked_at: Callable[[int], object] = nobody,
) -> Exported:
    """Write what the reader reads to a file, or to standard output if it is called -.

    Parquet of several streams is a file for each, called NAME-STREAM.parquet. payload: the bytes of the
    message too where its fields are named. ConfigError if a file is there already or cannot be written, if a
    package is missing, or if one file cannot hold all that is selected.
    """
    connections = reader.connections
    groups = {path: connections}
    if kind == "parquet" and path != _STDOUT:
        groups = _by_stream(path, connections)
    new_writer = _writer(kind, len(groups))  # first of all: a missing package makes no file
    if kind == "csv" or (kind == "parquet" and path == _STDOUT):
        _refuse_several(path, kind, connections)
    if path == _STDOUT:
        if kind in ("parquet", "mcap") and sys.stdout.isatty():
            raise ConfigError(f"--output -: a terminal cannot show {kind}; redirect it, or name a file")
        with new_writer(sys.stdout.buffer, connections, payload) as writer:
            return Exported(_copy(reader, [(writer, connections)], looked_at), [])
    with ExitStack() as stack:
        parts = [stack.enter_context(_part(file)) for file in groups]
        writers = [
            (stack.enter_context(new_writer(part, some, payload)), some)
            for part, some in zip(parts, groups.values(), strict=True)
        ]
        count = _copy(reader, writers, looked_at)
    return Exported(count, list(groups))


@contextmanager
def _part(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name in the end, if nothing was raised."""
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        raise ConfigError(f"{path}: there already; remove it, or name another file")
    try:
        try:
            with part.open("xb") as stream:
                yield stream
            part.rename(path)
        except FileExistsError as error:
            raise ConfigError(f"{part}: another export writes here, or was killed; remove it") from error
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file") from error


def _by_stream(path: Path, connections: list[StoredConnection]) -> dict[Path, list[StoredConnection]]:
    """What each file gets: the one that was named, or one for each of several streams."""
    streams: dict[str, list[StoredConnection]] = {}
    for connection in connections:
        streams.setdefault(connection.stream, []).append(connection)
    if len(streams) <= 1:
        return {path: connections}
    return {path.with_name(f"{path.stem}-{name}{path.suffix}"): some for name, some in streams.items()}


def _refuse_several(path: Path, kind: Format, connections: Sequence[StoredConnection]) -> None:
    """ConfigError for streams that one table cannot hold: any two in Parquet, else those of other fields."""
    fields: dict[str, set[tuple[str, str]]] = {}
    for connection in connections:
        columns = connection.layout.columns if connection.layout else ()
        fields.setdefault(connection.stream, set()).update((each.name, each.unit) for each in columns)
    if kind != "parquet":
        fields = {stream: said for stream, said in fields.items() if said}
        if all(said == next(iter(fields.values())) for said in fields.values()):
            return
    if len(fields) > 1:
        raise ConfigError(
            f"--output {path}: one {kind} file cannot hold the streams {', '.join(fields)}, each with fields "
            f"of its own; name one of them, such as --stream {next(iter(fields))}"
        )


def optional(package: str, extra: str, purpose: str = "") -> ModuleType:
    """A package that not every logger has. ConfigError tells what needs it, and how to get it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{purpose or extra}: needs the Python package {package}; pip install 'midstream[{extra}]'"
        ) from error


def iso(received_ns: int) -> str:
    """A time in UTC with nanoseconds."""
    seconds, nanoseconds = divmod(received_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def record(message: StoredMessage, said: dict[str, Any]) -> dict[str, Any]:
    """A message as a line of JSON Lines has it."""
    arrival = message.arrival
    return {
        "stream": message.connection.stream,
        "sensor": message.connection.sensor,
        "port": message.connection.port,
        "connection": message.connection.id,
        "sequence": message.sequence,
        "received": iso(message.received_ns),
        "received_ns": message.received_ns,
        "arrived": iso(arrival.time_ns) if arrival else None,
        "arrived_ns": arrival.time_ns if arrival else None,
        "delay_ns": arrival.delay_ns if arrival else None,
        "delay_error_ns": arrival.error_ns if arrival else None,
        **said,
    }


def _cells(arrival: Arrival | None) -> tuple[object, ...]:
    return (iso(arrival.time_ns), *arrival[1:]) if arrival else (None,) * len(_ARRIVAL)


def _copy(
    reader: LogReader,
    writers: Sequence[tuple[ExportWriter, Sequence[StoredConnection]]],
    looked_at: Callable[[int], object],
) -> int:
    """How many messages there were; each writer gets those of its connections."""
    count = 0
    places = {each.id: place for place, (_, connections) in enumerate(writers) for each in connections}
    for piece in reader.read(looked_at):
        parted: list[list[StoredMessage]] = [[] for _ in writers]
        for message in piece:
            parted[places[message.connection.id]].append(message)
        for (writer, _), some in zip(writers, parted, strict=True):
            if some:
                writer.write(some)
        count += len(piece)
    return count


def _writer(kind: Format, files: int) -> Callable[[BinaryIO, Sequence[StoredConnection], bool], ExportWriter]:
    if kind == "parquet":
        optional("pyarrow", "parquet")
        from midstream.log.parquet import ParquetWriter

        return partial(ParquetWriter, files=files)
    if kind == "mcap":
        optional("mcap", "mcap")
        from midstream.log.mcap import McapWriter

        return McapWriter
    if kind == "csv":
        return CsvWriter
    if kind == "jsonl":
        return JsonLinesWriter
    assert_never(kind)


class _TextWriter(Closing):
    """Writes UTF-8 text."""

    def __init__(self, stream: BinaryIO) -> None:
        self._text = io.TextIOWrapper(stream, "utf-8", newline="", write_through=True)

    def close(self) -> None:
        try:
            self._text.flush()
        finally:
            self._text.detach()  # else it would close the stream when it is forgotten


class JsonLinesWriter(_TextWriter):
    """An object a line."""

    def __init__(self, stream: BinaryIO, _: Sequence[StoredConnection], payload: bool) -> None:
        super().__init__(stream)
        self._payload = payload

    def write(self, messages: Sequence[StoredMessage]) -> None:
        lines = []
        for message, said in zip(messages, decoded(messages), strict=True):
            if self._payload:
                said["hex"] = message.payload.hex()
            lines.append(json.dumps(record(message, said)) + "\n")
        self._text.write("".join(lines))


class CsvWriter(_TextWriter):
    """RFC 4180, with a header. A payload is text where it can be, else hexadecimal digits; with `payload`
    always digits, so that each cell says exactly which bytes the message had."""

    def __init__(self, stream: BinaryIO, connections: Sequence[StoredConnection], payload: bool) -> None:
        super().__init__(stream)
        self._fields = field_names(connections)
        ours = ("stream", "sensor", "port", "connection", "sequence", "received", *_ARRIVAL, "payload")
        *head, last = (own_name(name, self._fields) for name in ours)
        self._rows = csv.writer(self._text)
        self._rows.writerow([*head, *self._fields, last])
        self._payload = payload

    def write(self, messages: Sequence[StoredMessage]) -> None:
        rows = []
        for message, said in zip(messages, decoded(messages), strict=True):
            shown = said.get("text", said.get("hex"))
            if self._payload:
                shown = message.payload.hex()
            elif "json" in said:
                shown = text_of(message.payload) or json.dumps(said["json"])
            rows.append(
                [
                    message.connection.stream,
                    message.connection.sensor,
                    message.connection.port,
                    message.connection.id,
                    message.sequence,
                    iso(message.received_ns),
                    *_cells(message.arrival),
                    *map(said.get("fields", {}).get, self._fields),
                    shown,
                ]
            )
        self._rows.writerows(rows)
