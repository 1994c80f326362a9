"""The tables of the logger's database, their version, and the way from each version to the next.

connections     one row a connection; closed_ns is NULL while it is open
messages        one row a message, complete in itself: where it lies in the stream, when it came, a checksum
fragments       the beginning of a message that is not whole yet and too long to wait in the kernel
readings_NAME   the fields of each message of the stream NAME as typed columns, where it has fields
held            how far the hardworker held each connection, as its daemon says
arrivals        when the bytes of each connection came to the hardworker, as its daemon says
pending         what is in the hardworker's spool, as its daemon says
forgotten       holes: what a full spool has forgotten, of each stream of each sensor
log             a view: who sent what, when
schema_version  one row: VERSION
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    column,
    func,
    insert,
    inspect,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.schema import CreateColumn

from midstream.config import DATA
from midstream.errors import StoreError

VERSION = 4
NOTES_PRUNED = 2  # the first version that notes what was removed to make room
NAMES_STREAMS = 4  # the first version that has streams; what an older one has stored is of `data`

metadata = MetaData()
key = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself only for INTEGER

connections = Table(
    "connections",
    metadata,
    Column("id", key, primary_key=True, autoincrement=True),
    Column("sensor", String(15), nullable=False),  # IPv4 address
    Column("port", Integer, nullable=False),
    Column("opened_ns", BigInteger, nullable=False),  # since 1970, as all times here
    Column("closed_ns", BigInteger),
    Column("bytes", BigInteger),  # of the whole stream, frames included; NULL while it is open
    Column("digest", String(64)),  # SHA-256 of the whole stream; NULL if the worker was restarted meanwhile
    Column("reset", Boolean),
    Column("reason", Text),  # why it ended
    Column("unfinished", LargeBinary),  # bytes after the last whole message; NULL if there are none
    Column("token", String(40), unique=True),  # the holder's name for it; NULL: stored by version 1
    Column("framing", String(8)),  # fixed, length or line; NULL: stored by version 1
    Column("layout", Text),  # Layout.describe(); NULL: no fields were configured
    Column("pruned", BigInteger),  # messages that were removed to make room: those with a lower sequence
    Column("first", BigInteger),  # TCP's sequence number of the stream's first byte; NULL: it is not known
    Column("spooled", Boolean),  # came by the hardworker's spool; NULL: stored by a version before 3
    Column("stream", String(32)),  # its name; NULL: stored by a version before 4, which had one, `data`
)

Index("connections_first", connections.c.sensor, connections.c.port, connections.c.first)

messages = Table(
    "messages",
    metadata,
    Column("connection_id", key, ForeignKey("connections.id"), primary_key=True, autoincrement=False),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("stream_offset", BigInteger),  # of the message's frame; NULL: stored by version 1
    Column("crc", BigInteger),  # store.checksum; NULL: stored by version 1
)

fragments = Table(
    "fragments",
    metadata,
    Column("connection_id", key, ForeignKey("connections.id"), primary_key=True, autoincrement=False),
    Column("stream_offset", BigInteger, primary_key=True, autoincrement=False),
    Column("bytes", LargeBinary, nullable=False),
)

held = Table(
    "held",
    metadata,
    Column("sensor", String(15), primary_key=True),
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column("first", BigInteger, primary_key=True, autoincrement=False),  # as in connections
    Column("opened_ns", BigInteger, primary_key=True, autoincrement=False),  # by the hardworker's clock
    Column("held_bytes", BigInteger, nullable=False),  # of the stream
    Column("state", String(8), nullable=False),  # told.py has the words
    Column("destination_here", Boolean, nullable=False),  # it went to the spool
    Column("stream", String(32), primary_key=True),
)

arrivals = Table(
    "arrivals",
    metadata,
    Column("sensor", String(15), primary_key=True),
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column("first", BigInteger, primary_key=True, autoincrement=False),  # as in connections
    Column("opened_ns", BigInteger, primary_key=True, autoincrement=False),  # by the hardworker's clock
    Column("stream_start", BigInteger, primary_key=True, autoincrement=False),
    Column("stream_end", BigInteger, nullable=False),
    Column("time_ns", BigInteger, nullable=False),  # of the first step, by the hardworker's clock
    Column("ahead_ns", BigInteger, nullable=False),  # the logger's clock, of the hardworker's
    Column("error_ns", BigInteger, nullable=False),  # of ahead_ns, at most
    Column("steps", LargeBinary, nullable=False),  # told.STEP
    Column("stream", String(32), primary_key=True),
)

pending = Table(
    "pending",
    metadata,
    Column("sensor", String(15), primary_key=True),
    Column("port", Integer, primary_key=True, autoincrement=False),
    Column("first", BigInteger, primary_key=True, autoincrement=False),  # told.UNKNOWN: it is not known
    Column("opened_ns", BigInteger, primary_key=True, autoincrement=False),  # by the hardworker's clock
    Column("stream_start", BigInteger, nullable=False),
    Column("stream_end", BigInteger, nullable=False),
    Column("messages", BigInteger, nullable=False),
    Column("oldest_ns", BigInteger, nullable=False),
    Column("stream", String(32), primary_key=True),
)

forgotten = Table(
    "forgotten",
    metadata,
    Column("sensor", String(15), primary_key=True),
    Column("first_ns", BigInteger, primary_key=True, autoincrement=False),  # when the first was received
    Column("last_ns", BigInteger, nullable=False),
    Column("messages", BigInteger, nullable=False),
    Column("bytes", BigInteger, nullable=False),  # of their payload
    Column("stream", String(32), primary_key=True),
)

schema_version = Table("schema_version", metadata, Column("version", Integer, nullable=False))

READINGS = "readings"


def readings_table(stream: str, version: int = VERSION) -> str:
    """The name of the table with connection_id, sequence, and a column for each of Layout.columns."""
    return READINGS if version < NAMES_STREAMS else f"{READINGS}_{stream}"


def stream_of(version: int = VERSION) -> ColumnElement[str]:
    """The name of a connection's stream."""
    if version < NAMES_STREAMS:
        return literal(DATA).label("stream")
    return func.coalesce(connections.c.stream, DATA).label("stream")


_LOG_VIEW = """VIEW log AS
SELECT connections.sensor, connections.port, messages.connection_id, messages.sequence,
       messages.received_ns, messages.payload, coalesce(connections.stream, 'data') AS stream
FROM messages JOIN connections ON connections.id = messages.connection_id
"""

_FIRST_VERSION = {
    "connections": {
        *(
            "id",
            "sensor",
            "port",
            "opened_ns",
            "closed_ns",
            "bytes",
            "digest",
            "reset",
            "reason",
            "unfinished",
        )
    },
    "messages": {"connection_id", "sequence", "received_ns", "payload"},
}


def prepare(database: Connection, name: str) -> None:
    """Make the tables that are missing, or bring those of an older version up to date, in one transaction.

    StoreError if they are another program's or a newer version's; `name` is what the message calls them.
    """
    found = _version(database, name)
    if found > VERSION:
        raise StoreError(
            f"{name}: its tables have version {found}, and this midstream knows those up to {VERSION}. "
            "Install the newer midstream, or name another database ([logger] database)"
        )
    metadata.create_all(database)
    for version in range(found, VERSION) if found else ():
        _MIGRATIONS[version](database)
    _refuse_foreign(database, name, metadata.tables.values())
    if found < NAMES_STREAMS or "log" not in inspect(database).get_view_names():
        _make_view(database)
    # Written each time: a database that can be read and not written is not open.
    written = update(schema_version) if found else insert(schema_version)
    database.execute(written.values(version=VERSION))


def _make_view(database: Connection) -> None:
    """Others may have made views of it: where that is possible it stays, and gets new columns."""
    if database.dialect.name == "sqlite":
        database.execute(text("DROP VIEW IF EXISTS log"))
        database.execute(text(f"CREATE {_LOG_VIEW}"))
    else:
        database.execute(text(f"CREATE OR REPLACE {_LOG_VIEW}"))


def _version(database: Connection, name: str) -> int:
    """0 for an empty database; 1 for the first version, which did not write down its number."""
    tables = set(inspect(database).get_table_names())
    if schema_version.name in tables:
        _refuse_foreign(database, name, [schema_version])
        version: int = database.execute(select(schema_version.c.version)).scalar_one()
        return version
    present = tables & _FIRST_VERSION.keys()
    _refuse_columns(database, name, {table: _FIRST_VERSION[table] for table in present})
    return 1 if present == _FIRST_VERSION.keys() else 0


def _to_version_2(database: Connection) -> None:
    """What says of each message where it lies in the stream, and lets a killed worker go on."""
    present = {
        table.name: {found["name"] for found in inspect(database).get_columns(table.name)}
        for table in (connections, messages)
    }
    for table, names in (
        (connections, ("token", "framing", "layout", "pruned")),
        (messages, ("stream_offset", "crc")),
    ):
        for new in names:
            if new not in present[table.name]:
                add_column(database, table, table.c[new])
    database.execute(text("CREATE UNIQUE INDEX IF NOT EXISTS connections_token ON connections (token)"))
    if database.execute(select(schema_version.c.version)).first() is None:
        database.execute(insert(schema_version).values(version=1))


def _to_version_3(database: Connection) -> None:
    """What tells a connection from every other, on whatever host it was stored."""
    for new in (connections.c.first, connections.c.spooled):
        add_column(database, connections, new)
    database.execute(
        text("CREATE INDEX IF NOT EXISTS connections_first ON connections (sensor, port, first)")
    )


def _to_version_4(database: Connection) -> None:
    """Streams: all that there is belongs to the one called data."""
    add_column(database, connections, connections.c.stream)
    inspector = inspect(database)
    present = set(inspector.get_table_names())
    old, new = readings_table(DATA, NAMES_STREAMS - 1), readings_table(DATA)
    if old in present and new not in present:
        database.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
    for table in (held, arrivals, pending, forgotten):
        if "stream" not in {found["name"] for found in inspector.get_columns(table.name)}:
            _rebuild(database, table)


def _rebuild(database: Connection, table: Table) -> None:
    """With the stream in its key, which SQLite cannot change in place."""
    before = f"{table.name}_before"
    database.execute(text(f"ALTER TABLE {table.name} RENAME TO {before}"))
    table.create(database)
    names = [each.name for each in table.columns if each.name != "stream"]
    old: list[ColumnElement[Any]] = [column(name) for name in names]
    rows = select(*old, literal(DATA)).select_from(text(before))
    database.execute(insert(table).from_select([*names, "stream"], rows))
    database.execute(text(f"DROP TABLE {before}"))


_MIGRATIONS: dict[int, Callable[[Connection], None]] = {1: _to_version_2, 2: _to_version_3, 3: _to_version_4}


def add_column(database: Connection, table: Table, new: Column[Any]) -> None:
    """A column that a table does not have yet."""
    plain = Column(new.name, new.type)  # a UNIQUE cannot be added with the column in SQLite
    definition = CreateColumn(plain).compile(dialect=database.dialect)
    database.execute(text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))


def _refuse_foreign(database: Connection, name: str, tables: Iterable[Table]) -> None:
    _refuse_columns(database, name, {table.name: set(table.columns.keys()) for table in tables})


def _refuse_columns(database: Connection, name: str, wanted: Mapping[str, set[str]]) -> None:
    inspector = inspect(database)
    for table, columns in wanted.items():
        missing = columns - {found["name"] for found in inspector.get_columns(table)}
        if missing:
            raise StoreError(
                f"{name}: its table {table} is not midstream's: it has no column "
                f"{', '.join(sorted(missing))}. Name another database ([logger] database)"
            )
