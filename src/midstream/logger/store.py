"""The logger's database: every connection and every message, through SQLAlchemy Core.

connections   one row a connection; closed_ns is NULL while it is open (for ever if the logger was killed)
messages      one row a message; sequence counts from 0 in each connection
log           a view of both: who sent what, when
"""

from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    text,
    update,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool

from midstream.errors import StoreError

LOCK_TIMEOUT = 5.0  # seconds SQLite waits for another program's transaction

metadata = MetaData()
_id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only for INTEGER

connections = Table(
    "connections",
    metadata,
    Column("id", _id, primary_key=True, autoincrement=True),
    Column("sensor", String(15), nullable=False),  # IPv4 address
    Column("port", Integer, nullable=False),
    Column("opened_ns", BigInteger, nullable=False),  # since 1970, as all times here
    Column("closed_ns", BigInteger),
    Column("bytes", BigInteger),  # of the whole stream, frames included
    Column("digest", String(64)),  # SHA-256 of the whole stream
    Column("reset", Boolean),
    Column("reason", Text),  # why it ended
    Column("unfinished", LargeBinary),  # bytes after the last whole message; NULL if there are none
)

messages = Table(
    "messages",
    metadata,
    Column("connection_id", _id, ForeignKey("connections.id"), primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
)

_EXPECTED = (
    "Expected a SQLAlchemy URL such as sqlite:///midstream.db or postgresql+psycopg://user@host/name "
    "([logger] database in config.toml)"
)

_LOG_VIEW = """
CREATE VIEW log AS
SELECT connections.sensor, connections.port, messages.connection_id, messages.sequence,
       messages.received_ns, messages.payload
FROM messages JOIN connections ON connections.id = messages.connection_id
"""


@dataclass(slots=True, eq=False)
class ConnectionRow:
    """A connection as the database will know it; `id` is given by the first commit."""

    sensor: str
    port: int
    opened_ns: int
    id: int | None = None
    closed_ns: int | None = None
    size: int = 0  # bytes of the stream
    digest: str = ""
    reset: bool = False
    reason: str = ""
    unfinished: bytes = b""


@dataclass(slots=True)
class Batch:
    """What waits for its commit."""

    opened: list[ConnectionRow] = field(default_factory=list)
    messages: list[tuple[ConnectionRow, int, int, bytes]] = field(default_factory=list)
    """connection, sequence, received_ns, payload"""
    closed: list[ConnectionRow] = field(default_factory=list)
    payload_bytes: int = 0

    def __bool__(self) -> bool:
        return bool(self.opened or self.messages or self.closed)


class Store:
    """The database at a SQLAlchemy URL; tables are made if they are missing.

    StoreError if the URL, the driver, the file or its content is not usable: the message says what to do.
    One thread at a time may use a store.
    """

    def __init__(self, url: str | URL, *, batch_size: int) -> None:
        self._batch_size = batch_size
        try:
            parsed = make_url(url)
        except ArgumentError as error:  # the text is not repeated: it may hold a password
            raise StoreError(f"[logger] database is not a URL. {_EXPECTED}") from error
        self._name = parsed.render_as_string(hide_password=True)
        try:
            self._engine = _engine(parsed)
        except NoSuchModuleError as error:
            raise StoreError(f"{self._name}: no such kind of database. {_EXPECTED}") from error
        except ModuleNotFoundError as error:
            raise StoreError(
                f"{self._name} needs a Python package that is not installed: pip install {error.name}"
            ) from error
        try:
            with self._engine.begin() as connection:
                self._prepare(connection)
        except SQLAlchemyError as error:
            self._engine.dispose()
            raise self._failed(error) from error
        except StoreError:
            self._engine.dispose()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, batch: Batch) -> int:
        """Commit a batch in transactions of at most `batch_size` messages; return how many it took.

        New connections go first and ends last, so that every committed prefix is consistent.
        """
        starts = range(0, max(len(batch.messages), 1), self._batch_size)
        try:
            for start in starts:
                with self._engine.begin() as connection:
                    if start == 0:
                        _insert_opened(connection, batch.opened)
                    _insert_messages(connection, batch.messages[start : start + self._batch_size])
                    if start == starts[-1]:
                        _update_closed(connection, batch.closed)
        except SQLAlchemyError as error:
            raise self._failed(error) from error
        return len(starts)

    def close(self) -> None:
        self._engine.dispose()

    def _prepare(self, connection: Connection) -> None:
        metadata.create_all(connection)
        inspector = inspect(connection)
        for table in metadata.tables.values():
            missing = set(table.columns.keys()) - {
                column["name"] for column in inspector.get_columns(table.name)
            }
            if missing:
                raise StoreError(
                    f"{self._name}: its table {table.name} is not midstream's: it has no column "
                    f"{', '.join(sorted(missing))}. Name another database ([logger] database)"
                )
        if "log" not in inspector.get_view_names():
            connection.execute(text(_LOG_VIEW))

    def _failed(self, error: SQLAlchemyError) -> StoreError:
        cause = _first_line(error.orig if isinstance(error, DBAPIError) and error.orig else error)
        if "locked" in cause:
            advice = "another program holds a transaction open in it: end it, then start the logger again"
        elif "not a database" in cause or "malformed" in cause:
            advice = (
                "the file is damaged or no SQLite database: move it away, or name another in [logger] "
                "database. `sqlite3 FILE .recover` saves what can be read"
            )
        elif "unable to open" in cause or "readonly" in cause:
            advice = "its folder must exist, and file and folder be writable for this user"
        elif "full" in cause:
            advice = "make room on its disk, then start the logger again"
        else:
            advice = "see that the database runs, is reached and lets this user write ([logger] database)"
        return StoreError(f"{self._name}: {cause}. What to do: {advice}")


def _engine(url: URL) -> Engine:
    if url.get_backend_name() != "sqlite":
        return create_engine(url)
    # One connection for good: SQLite has one writer anyway, and the thread that commits did not open it.
    engine = create_engine(
        url, poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": LOCK_TIMEOUT}
    )

    @event.listens_for(engine, "connect")
    def set_durability(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")  # readers and the logger do not wait for each other
        cursor.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut
        cursor.close()

    return engine


def _insert_opened(connection: Connection, rows: list[ConnectionRow]) -> None:
    for row in rows:
        result = connection.execute(
            insert(connections).values(sensor=row.sensor, port=row.port, opened_ns=row.opened_ns)
        )
        key = result.inserted_primary_key
        assert key is not None
        row.id = key[0]


def _insert_messages(connection: Connection, rows: list[tuple[ConnectionRow, int, int, bytes]]) -> None:
    if rows:
        connection.execute(
            insert(messages),
            [
                {"connection_id": row.id, "sequence": sequence, "received_ns": received, "payload": payload}
                for row, sequence, received, payload in rows
            ],
        )


def _update_closed(connection: Connection, rows: list[ConnectionRow]) -> None:
    for row in rows:
        connection.execute(
            update(connections)
            .where(connections.c.id == row.id)
            .values(
                closed_ns=row.closed_ns,
                bytes=row.size,
                digest=row.digest,
                reset=row.reset,
                reason=row.reason,
                unfinished=row.unfinished or None,
            )
        )


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(". ")
