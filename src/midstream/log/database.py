"""The logger's database, read: its connections, and the messages of one of them piece by piece.

Every read is a transaction of its own and takes at most MAX_ROWS messages and about MAX_BYTES: a reader that
is slow, or follows for days, holds no snapshot that would keep SQLite's log or PostgreSQL's old rows from
being cleared away. Nothing here can write: SQLite opens the file read-only, PostgreSQL the transactions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

from sqlalchemy import (
    URL,
    Column,
    ColumnElement,
    Connection,
    Table,
    and_,
    func,
    inspect,
    null,
    or_,
    select,
)
from sqlalchemy.exc import SQLAlchemyError

from midstream.errors import StoreError
from midstream.fields import Layout
from midstream.logger import schema
from midstream.logger.opening import failed, open_engine, stored_version
from midstream.logger.store import FRAME

MAX_ROWS = 4096
MAX_BYTES = 8 << 20  # of payload: a message is taken whole, so one that is longer exceeds it


@dataclass(frozen=True, slots=True, eq=False)
class StoredConnection:
    """A sensor's connection. closed_ns is None while it is open, or if the logger never saw its end; so is
    `size`, the bytes of its stream. Messages with a sequence below `pruned` were removed on purpose."""

    id: int
    sensor: str
    port: int
    opened_ns: int
    closed_ns: int | None
    size: int | None
    digest: str | None
    reset: bool
    reason: str
    unfinished: bytes
    framing: str
    layout: Layout | None
    pruned: int

    @property
    def state(self) -> str:
        if self.closed_ns is None:
            return "open"
        return "reset" if self.reset else "closed"


class StoredMessage(NamedTuple):
    """A message of a connection. received_ns: since 1970. offset and crc: None in databases of version 1."""

    connection: StoredConnection
    sequence: int
    received_ns: int
    payload: bytes
    offset: int | None
    crc: int | None


@dataclass(frozen=True, slots=True)
class Extent:
    """What there is of a connection: how many messages, the first and the last of them."""

    messages: int
    first: int
    last: int
    first_ns: int
    last_ns: int
    start: int | None  # where in the stream the frame of the first begins, and where that of the last ends
    end: int | None


class LogDatabase:
    """The logger's database at a URL, for reading. `framing` and `layout` are for messages that were stored
    without saying what they are.

    StoreError if there is none, or if it cannot be read: the message says what to do.
    """

    def __init__(self, url: str | URL, *, framing: str = "fixed", layout: Layout | None = None) -> None:
        self._framing, self._layout = framing, layout
        self._engine, self.name = open_engine(url, read_only=True)
        try:
            with self.transaction() as database:
                self.version = stored_version(database, self.name)
                inspector = inspect(database)
                self._present = {
                    table.name: {column["name"] for column in inspector.get_columns(table.name)}
                    for table in (schema.connections, schema.messages)
                }
                tables = inspector.get_table_names()
                self.has_readings = schema.READINGS in tables
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A short transaction that cannot write. Faults of the database become StoreError."""
        try:
            with self._engine.connect() as database:
                yield database
        except SQLAlchemyError as error:
            raise failed(self.name, error) from error

    def connections(self) -> list[StoredConnection]:
        """All connections, the oldest first."""
        table = schema.connections
        query = select(*(self._column(column) for column in table.columns)).order_by(
            table.c.opened_ns, table.c.id
        )
        with self.transaction() as database:
            return [self._connection(row) for row in database.execute(query).mappings()]

    def extents(self) -> dict[int, Extent]:
        """What there is of each connection that has messages, by its id."""
        table = schema.messages
        counted = (
            select(
                table.c.connection_id,
                func.count().label("messages"),
                func.min(table.c.sequence).label("first"),
                func.max(table.c.sequence).label("last"),
            )
            .group_by(table.c.connection_id)
            .subquery()
        )
        ends = select(
            table.c.connection_id,
            counted.c.messages,
            counted.c.first,
            counted.c.last,
            table.c.sequence,
            table.c.received_ns,
            self._column(table.c.stream_offset),
            func.length(table.c.payload).label("size"),
            self._column(schema.connections.c.framing),
        )
        ends = ends.join(
            counted,
            and_(
                counted.c.connection_id == table.c.connection_id,
                or_(table.c.sequence == counted.c.first, table.c.sequence == counted.c.last),
            ),
        ).join(schema.connections, schema.connections.c.id == table.c.connection_id)
        with self.transaction() as database:
            rows: dict[int, list[Any]] = {}
            for row in database.execute(ends.order_by(table.c.connection_id, table.c.sequence)):
                rows.setdefault(row.connection_id, []).append(row)
        extents = {}
        for key, found in rows.items():
            first, last = found[0], found[-1]
            frame = FRAME[first.framing or self._framing]
            end = None if last.stream_offset is None else last.stream_offset + last.size + frame
            extents[key] = Extent(
                first.messages,
                first.first,
                first.last,
                first.received_ns,
                last.received_ns,
                first.stream_offset,
                end,
            )
        return extents

    def last_sequences(self) -> dict[int, int]:
        """The sequence of each connection's last message, by its id; cheaper than `extents`."""
        last = (
            select(func.max(schema.messages.c.sequence))
            .where(schema.messages.c.connection_id == schema.connections.c.id)
            .scalar_subquery()
        )
        with self.transaction() as database:
            rows = database.execute(select(schema.connections.c.id, last)).all()
        return {key: sequence for key, sequence in rows if sequence is not None}

    def piece(
        self, connection: StoredConnection, start: int, stop: int, max_bytes: int = MAX_BYTES
    ) -> tuple[list[StoredMessage], int]:
        """The next messages of a connection from sequence `start`, below `stop`; and where to go on.

        At most MAX_ROWS; none follows when there are `max_bytes` or MAX_BYTES of payload.
        """
        table = schema.messages
        query = (
            select(
                table.c.sequence,
                table.c.received_ns,
                table.c.payload,
                self._column(table.c.stream_offset),
                self._column(table.c.crc),
            )
            .where(table.c.connection_id == connection.id, table.c.sequence >= start, table.c.sequence < stop)
            .order_by(table.c.sequence)
            .limit(MAX_ROWS)
        )
        found: list[StoredMessage] = []
        size = 0
        with self.transaction() as database:
            rows = database.execution_options(stream_results=True, max_row_buffer=256).execute(query)
            for row in rows:
                found.append(StoredMessage(connection, *row))
                size += len(row[2])
                if size >= min(max_bytes, MAX_BYTES):
                    rows.close()
                    return found, found[-1].sequence + 1
        return found, found[-1].sequence + 1 if len(found) == MAX_ROWS else stop

    def _column(self, column: Column[Any]) -> ColumnElement[Any]:
        """A column, or NULL where a database of version 1 has none."""
        table = column.table
        assert isinstance(table, Table)
        return column if column.name in self._present[table.name] else null().label(column.name)

    def _connection(self, row: Any) -> StoredConnection:
        framing = row["framing"] or self._framing
        layout = self._layout if framing == "fixed" else None
        if row["layout"] is not None:
            try:
                layout = Layout.parse(row["layout"])
            except (ValueError, KeyError, TypeError) as error:
                raise StoreError(
                    f"{self.name}: the fields of connection {row['id']} cannot be read ({error}): was its "
                    "column layout changed? Set it to NULL to see the messages as bytes"
                ) from error
        return StoredConnection(
            id=row["id"],
            sensor=row["sensor"],
            port=row["port"],
            opened_ns=row["opened_ns"],
            closed_ns=row["closed_ns"],
            size=row["bytes"],
            digest=row["digest"],
            reset=bool(row["reset"]),
            reason=row["reason"] or "",
            unfinished=row["unfinished"] or b"",
            framing=framing,
            layout=layout,
            pruned=row["pruned"] or 0,
        )
