"""The log in a SQL database: its connections, and the messages of one of them piece by piece.

Every read is a transaction of its own and takes at most MAX_ROWS messages and about MAX_BYTES: a reader that
is slow, or follows for days, holds no snapshot that would keep SQLite's log or PostgreSQL's old rows from
being cleared away. Nothing here can write: SQLite opens the file read-only, PostgreSQL the transactions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import (
    URL,
    Column,
    ColumnElement,
    Connection,
    Select,
    Table,
    and_,
    column,
    func,
    inspect,
    null,
    or_,
    select,
    table,
    text,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.sql import quoted_name

from midstream.closing import Closing
from midstream.config import DATA
from midstream.errors import StoreError
from midstream.storage import schema
from midstream.storage.formats import NO_STREAMS, Formats, StreamFormat
from midstream.storage.opening import failed, open_engine, stored_version
from midstream.storage.store import FRAME
from midstream.storage.stored import (
    MAX_BYTES,
    MAX_ROWS,
    Extent,
    StoredConnection,
    StoredMessage,
    told_open,
)
from midstream.told import ArrivalTimes, Forgotten, HeldConnection, Knowledge, Pending


class SqlLog(Closing):
    """The logger's database at a URL, for reading. streams: what their messages are, where they were stored
    without saying it.

    StoreError if there is none, or if it cannot be read: the message says what to do.
    """

    def __init__(self, url: str | URL, streams: Formats = NO_STREAMS) -> None:
        self._streams = streams
        self._engine, self.name = open_engine(url, read_only=True)
        try:
            with self.transaction() as database:
                self.version = stored_version(database, self.name)
                inspector = inspect(database)
                self._tables = set(inspector.get_table_names())
                self._present = {
                    name: {found["name"] for found in inspector.get_columns(name)}
                    for name in self._tables & schema.metadata.tables.keys()
                }
        except BaseException:
            self.close()
            raise

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
        known = schema.connections
        query = select(*(self._column(each) for each in known.columns)).order_by(
            known.c.opened_ns, known.c.id
        )
        with self.transaction() as database:
            rows = database.execute(query).mappings().all()
        return told_open([self._connection(row) for row in rows])

    def extents(self, *, gaps: bool = True) -> dict[int, Extent]:
        messages = schema.messages
        counted = (_counted() if gaps else _ends()).subquery()
        ends = select(
            messages.c.connection_id,
            counted.c.messages,
            counted.c.first,
            counted.c.last,
            messages.c.sequence,
            messages.c.received_ns,
            self._column(messages.c.stream_offset),
            func.length(messages.c.payload).label("size"),
            self._column(schema.connections.c.framing),
            self._column(schema.connections.c.stream),
        )
        ends = ends.join(
            counted,
            and_(
                counted.c.connection_id == messages.c.connection_id,
                or_(messages.c.sequence == counted.c.first, messages.c.sequence == counted.c.last),
            ),
        ).join(schema.connections, schema.connections.c.id == messages.c.connection_id)
        with self.transaction() as database:
            rows: dict[int, list[Any]] = {}
            for row in database.execute(ends.order_by(messages.c.connection_id, messages.c.sequence)):
                rows.setdefault(row.connection_id, []).append(row)
        extents = {}
        for key, found in rows.items():
            first, last = found[0], found[-1]
            frame = FRAME[first.framing or self._stored_without(first.stream).framing]
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
        messages = schema.messages
        query = (
            select(
                messages.c.sequence,
                messages.c.received_ns,
                messages.c.payload,
                self._column(messages.c.stream_offset),
                self._column(messages.c.crc),
            )
            .where(
                messages.c.connection_id == connection.id,
                messages.c.sequence >= start,
                messages.c.sequence < stop,
            )
            .order_by(messages.c.sequence)
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

    def first_since(self, connection: StoredConnection, _: int, /) -> int:
        return connection.pruned  # there is no index over the times

    def pruned(self, connection: StoredConnection) -> int:
        known = schema.connections
        query = select(self._column(known.c.pruned)).where(known.c.id == connection.id)
        with self.transaction() as database:
            return database.execute(query).scalar() or 0

    def told(self) -> Knowledge:
        tables = (schema.held, schema.pending, schema.forgotten)
        if not {each.name for each in tables} <= self._tables:
            return Knowledge()
        with self.transaction() as database:
            held, pending, forgotten = (database.execute(self._all_told(each)).all() for each in tables)
        return Knowledge(
            [HeldConnection(*row) for row in held],
            [Pending(*row) for row in pending],
            [Forgotten(*row) for row in forgotten],
        )

    def _all_told(self, told: Table) -> Select[Any]:
        """All columns of a table, the stream's name too if this version has one."""
        named = self.version >= schema.NAMES_STREAMS
        return select(*(each for each in told.c if named or each is not told.c.stream))

    def arrivals(self, connection: StoredConnection, start: int, end: int, _: int, /) -> list[ArrivalTimes]:
        if schema.arrivals.name not in self._tables:
            return []
        told = schema.arrivals
        query = self._all_told(told).where(
            told.c.sensor == connection.sensor,
            told.c.port == connection.port,
            told.c.first == connection.first,
            *([told.c.stream == connection.stream] if self.version >= schema.NAMES_STREAMS else []),
            told.c.stream_start < end,
            told.c.stream_end > start,
        )
        with self.transaction() as database:
            return [ArrivalTimes(*row) for row in database.execute(query)]

    def faults(self) -> list[str]:
        """SQLite's own look at its pages."""
        with self.transaction() as database:
            if database.dialect.name != "sqlite":
                return []
            found = database.execute(text("PRAGMA quick_check(10)")).scalars()
            return [f"SQLite: {each}" for each in found if each != "ok"]

    def readings_table(self, connection: StoredConnection, /) -> str | None:
        if self.version < 2:
            return None
        return schema.readings_table(connection.stream, self.version)

    def readings(
        self, connection: StoredConnection, names: list[str], first: int, last: int, /
    ) -> dict[int, tuple[Any, ...]]:
        called = self.readings_table(connection)
        if called not in self._tables:
            return {}
        stored = table(
            called,
            column("connection_id"),
            column("sequence"),
            *(column(quoted_name(name, True)) for name in names),
        )
        query = select(stored.c.sequence, *(stored.c[name] for name in names)).where(
            stored.c.connection_id == connection.id, stored.c.sequence.between(first, last)
        )
        with self.transaction() as database:
            return {row[0]: tuple(row)[1:] for row in database.execute(query)}

    def _column(self, column: Column[Any]) -> ColumnElement[Any]:
        """A column, or NULL where a database of an older version has none."""
        assert isinstance(column.table, Table)
        return column if column.name in self._present[column.table.name] else null().label(column.name)

    def _stored_without(self, stream: str | None) -> StreamFormat:
        return self._streams.get(stream or DATA, StreamFormat())

    def _connection(self, row: Any) -> StoredConnection:
        known = self._stored_without(row["stream"])
        framing = row["framing"] or known.framing
        layout = known.layout if framing == "fixed" else None
        if row["layout"] is not None:
            from midstream.fields import Layout  # with NumPy, which not every reader needs

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
            token=row["token"] or "",
            first=row["first"],
            spooled=bool(row["spooled"]),
            stream=row["stream"] or DATA,
        )


def _counted() -> Select[Any]:
    """How many messages each connection has, the first and the last of them."""
    sequence = schema.messages.c.sequence
    return select(
        schema.messages.c.connection_id,
        func.count().label("messages"),
        func.min(sequence).label("first"),
        func.max(sequence).label("last"),
    ).group_by(schema.messages.c.connection_id)


def _ends() -> Select[Any]:
    """The same by two look-ups per connection, as if no message were missing between them."""
    messages, known = schema.messages, schema.connections
    first, last = (
        select(end(messages.c.sequence)).where(messages.c.connection_id == known.c.id).scalar_subquery()
        for end in (func.min, func.max)
    )
    ends = select(known.c.id.label("connection_id"), first.label("first"), last.label("last")).subquery()
    count = (ends.c.last + 1 - ends.c.first).label("messages")
    return select(ends.c.connection_id, count, ends.c.first, ends.c.last).where(ends.c.last.is_not(None))
