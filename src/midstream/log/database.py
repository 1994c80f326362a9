"""The logger's database, read: its connections, and the messages of one of them piece by piece.

Every read is a transaction of its own and takes at most MAX_ROWS messages and about MAX_BYTES: a reader that
is slow, or follows for days, holds no snapshot that would keep SQLite's log or PostgreSQL's old rows from
being cleared away. Nothing here can write: SQLite opens the file read-only, PostgreSQL the transactions.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

from sqlalchemy import (
    URL,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Table,
    and_,
    create_engine,
    func,
    inspect,
    make_url,
    null,
    or_,
    select,
)
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import StaticPool

from midstream.errors import StoreError
from midstream.fields import Layout
from midstream.logger import schema
from midstream.logger.store import FRAME

MAX_ROWS = 4096
MAX_BYTES = 8 << 20  # of payload: a message is taken whole, so one that is longer exceeds it
LOCK_TIMEOUT = 5.0  # seconds that SQLite waits for a transaction that changes the file's form

_EXPECTED = (
    "Expected a SQLAlchemy URL such as sqlite:///midstream.db or postgresql+psycopg://user@host/name "
    "([logger] database in config.toml)"
)


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

    def piece(self, connection: StoredConnection, start: int, stop: int) -> tuple[list[StoredMessage], int]:
        """The next messages of a connection from sequence `start`, below `stop`; and where to go on."""
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
                if size >= MAX_BYTES:
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


def open_engine(url: str | URL, *, read_only: bool) -> tuple[Engine, str]:
    """The database at a URL, and its name without the password. StoreError if there is no such kind."""
    try:
        parsed = make_url(url)
    except ArgumentError as error:  # the text is not repeated: it may hold a password
        raise StoreError(f"[logger] database is not a URL. {_EXPECTED}") from error
    name = parsed.render_as_string(hide_password=True)
    if parsed.get_backend_name() == "nats":
        raise StoreError(
            f"{name}: midstream log reads SQLite and PostgreSQL. What to do: read a JetStream with the nats "
            "command (nats stream view), or name a database with --database"
        )
    try:
        if parsed.get_backend_name() == "sqlite":
            return _sqlite(parsed, name, read_only), name
        engine = create_engine(parsed)
    except NoSuchModuleError as error:
        raise StoreError(f"{name}: no such kind of database. {_EXPECTED}") from error
    except ModuleNotFoundError as error:
        raise StoreError(
            f"{name} needs a Python package that is not installed: pip install {error.name}"
        ) from error
    if read_only and parsed.get_backend_name() == "postgresql":
        engine = engine.execution_options(postgresql_readonly=True)
    return engine, name


def stored_version(database: Connection, name: str) -> int:
    """The version of the tables. StoreError if they are not the logger's, or newer than this program."""
    tables = set(inspect(database).get_table_names())
    if not {schema.connections.name, schema.messages.name} <= tables:
        raise StoreError(
            f"{name}: no logger has stored anything here: it has no tables connections and messages. "
            "What to do: name the logger's database ([logger] database in config.toml, or --database)"
        )
    if schema.schema_version.name not in tables:
        return 1
    version: int = database.execute(select(schema.schema_version.c.version)).scalar_one()
    if version > schema.VERSION:
        raise StoreError(
            f"{name}: its tables have version {version}, and this midstream knows those up to "
            f"{schema.VERSION}. What to do: install the newer midstream"
        )
    return version


def failed(name: str, error: SQLAlchemyError) -> StoreError:
    """What a person is told of a fault of the database."""
    cause = error.orig if isinstance(error, DBAPIError) and error.orig else error
    text = (str(cause) or type(cause).__name__).splitlines()[0].rstrip(". ")
    if "not a database" in text or "malformed" in text:
        advice = (
            "the file is damaged or no SQLite database. `sqlite3 FILE .recover` saves what can be read, "
            "`midstream log verify` says what is right"
        )
    elif "locked" in text:
        advice = "another program holds a transaction open in it: end it"
    elif "full" in text:
        advice = "make room on its disk"
    else:
        advice = "see that the database runs, is reached and lets this user in ([logger] database)"
    return StoreError(f"{name}: {text}. What to do: {advice}")


def _sqlite(url: URL, name: str, read_only: bool) -> Engine:
    path = Path(url.database or "")
    if not path.is_file():
        raise StoreError(
            f"{name}: no such file. What to do: start the logger, which makes it, or name another database "
            "([logger] database in config.toml, or --database)"
        )
    mode = "ro" if read_only else "rw"

    def connect() -> sqlite3.Connection:
        address = f"file:{quote(str(path))}?mode={mode}"
        connection = sqlite3.connect(address, LOCK_TIMEOUT, check_same_thread=False, uri=True)
        try:
            connection.execute("PRAGMA schema_version")
        except sqlite3.OperationalError:
            # Whoever may not write in the folder cannot share a log that nobody has open; nor need he.
            connection.close()
            if not read_only or path.with_name(f"{path.name}-wal").exists():
                raise
            connection = sqlite3.connect(f"{address}&immutable=1", check_same_thread=False, uri=True)
        return connection

    return create_engine("sqlite://", creator=connect, poolclass=StaticPool)
