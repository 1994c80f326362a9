"""Messages to files of other programs, piece by piece: memory does not grow with the log.

A file gets its name when it is whole: an export that is broken off leaves none behind.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, Literal, Protocol, assert_never

from midstream.closing import Closing
from midstream.errors import ConfigError
from midstream.log.decoding import decoded, field_names, own_name, text_of
from midstream.log.messages import LogReader, nobody
from midstream.storage.stored import Arrival, StoredConnection, StoredMessage

Format = Literal["csv", "jsonl", "parquet", "mcap"]

_ARRIVAL = ("arrived", "delay_ns", "delay_error_ns")  # columns of storage.stored.Arrival


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
) -> int:
    """Write what the reader reads to a file, or to standard output if it is called -; how many messages.

    payload: the bytes of the message too where its fields are named. ConfigError if the file is there already
    or cannot be written, or if a package is missing.
    """
    new_writer = _writer(kind)  # first of all: a missing package makes no file
    if path == Path("-"):
        if kind in ("parquet", "mcap") and sys.stdout.isatty():
            raise ConfigError(f"--output -: a terminal cannot show {kind}; redirect it, or name a file")
        return _copy(reader, new_writer(sys.stdout.buffer, reader.connections, payload), looked_at)
    part = path.with_name(f"{path.name}.part")
    if path.exists():
        raise ConfigError(f"{path}: there already; remove it, or name another file")
    try:
        try:
            with part.open("xb") as stream:
                count = _copy(reader, new_writer(stream, reader.connections, payload), looked_at)
            part.rename(path)
        except FileExistsError as error:
            raise ConfigError(f"{part}: another export writes here, or was killed; remove it") from error
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); name another file") from error
    return count


def optional(package: str, extra: str) -> ModuleType:
    """A package that not every logger has. ConfigError tells how to get it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{extra}: needs the Python package {package}; pip install 'midstream[{extra}]'"
        ) from error


def iso(received_ns: int) -> str:
    """A time in UTC with nanoseconds."""
    seconds, nanoseconds = divmod(received_ns, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09d}Z"


def record(message: StoredMessage, said: dict[str, Any]) -> dict[str, Any]:
    """A message as a line of JSON Lines has it."""
    arrival = message.arrival
    return {
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


def _copy(reader: LogReader, writer: ExportWriter, looked_at: Callable[[int], object]) -> int:
    count = 0
    with writer:
        for piece in reader.read(looked_at):
            writer.write(piece)
            count += len(piece)
    return count


def _writer(kind: Format) -> Callable[[BinaryIO, Sequence[StoredConnection], bool], ExportWriter]:
    if kind == "parquet":
        optional("pyarrow", "parquet")
        from midstream.log.parquet import ParquetWriter

        return ParquetWriter
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
        ours = ("sensor", "port", "connection", "sequence", "received", *_ARRIVAL, "payload")
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
