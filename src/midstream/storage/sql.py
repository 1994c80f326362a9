"""SQL databases through SQLAlchemy Core: SQLite, PostgreSQL, and what speaks its protocol."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import chain, groupby, islice
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    URL,
    Connection,
    Engine,
    Row,
    and_,
    create_engine,
    delete,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry, StaticPool

from midstream.closing import Closing
from midstream.config import DATA
from midstream.errors import StoreError
from midstream.storage import readings, schema, telling
from midstream.storage.formats import ONE_STREAM, Formats
from midstream.storage.inserts import Insert, inserter
from midstream.storage.opening import begin_writing, fault, open_with
from midstream.storage.schema import connections, forgotten, fragments, messages
from midstream.storage.store import (
    FRAME,
    Batch,
    ConnectionRow,
    MessageRow,
    Piece,
    Position,
    Unavailable,
)
from midstream.told import ArrivalTimes, Forgotten, HeldConnection, Pending

if TYPE_CHECKING:
    from midstream.fields import Layout  # needs NumPy, which most loggers do without
    from midstream.storage.room import Room

LOCK_TIMEOUT = 1.0  # seconds SQLite waits for another program's transaction
CONNECT_TIMEOUT = 5  # seconds for a server
LOOKUP = 500  # tokens in one query

_OPENING = 0x6D696473747265  # a lock of PostgreSQL's: the number is free to choose


class SqlStore(Closing):
    """The database at a SQLAlchemy URL; tables are made if they are missing, and brought up to date.

    `batch_size` is the most messages in a transaction. streams: those that there may be messages of.
    `room` bounds a file of SQLite, and is closed with the store.
    """

    def __init__(
        self,
        url: str | URL,
        *,
        batch_size: int,
        streams: Formats = ONE_STREAM,
        room: "Room | None" = None,
    ) -> None:
        self._batch_size = batch_size
        self._room = room
        self._streams = streams
        self._readings: dict[str, tuple[Layout, Insert]] = {}  # by stream
        self._engine, self._name = open_with(url, _engine)
        self._insert_rows = inserter(messages, self._engine.dialect)
        # The inserters use the driver itself, whose errors SQLAlchemy does not see.
        self._errors: tuple[type[Exception], ...] = (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error)
        try:
            with self._engine.begin() as database:
                if self._engine.dialect.name == "postgresql":  # another logger may make the tables just now
                    database.execute(select(func.pg_advisory_xact_lock(_OPENING)))
                schema.prepare(database, self._name)
                for name, known in streams.items():
                    if known.layout is not None:
                        self._prepare_readings(database, name, known.layout)
        except self._errors as error:
            self.close()
            raise self._failed(error) from error
        except StoreError:
            self.close()
            raise

    def resume(self, rows: Collection[ConnectionRow]) -> Mapping[str, Position]:
        positions = {}
        try:
            with self._engine.begin() as database:
                for some in _chunks([row.token for row in rows], LOOKUP):
                    known = select(connections).where(connections.c.token.in_(some))
                    for row in database.execute(known).all():
                        positions[row.token] = self._position(database, row)
        except self._errors as error:
            raise self._failed(error) from error
        return positions

    def find(self, row: ConnectionRow) -> ConnectionRow | None:
        try:
            with self._engine.begin() as database:
                named = select(connections).where(connections.c.token == row.token)
                found = database.execute(named).first()
                if found is None and row.first is not None:
                    same = select(connections).where(
                        connections.c.sensor == row.sensor,
                        connections.c.port == row.port,
                        connections.c.first == row.first,
                        schema.stream_of() == row.stream,
                    )
                    nearest = func.abs(connections.c.opened_ns - row.opened_ns)
                    found = database.execute(same.order_by(nearest).limit(1)).first()
        except self._errors as error:
            raise self._failed(error) from error
        return None if found is None else _row(found)

    def note_forgotten(self, holes: Collection[Forgotten]) -> None:
        try:
            with self._engine.begin() as database:
                for hole in holes:
                    same = and_(
                        forgotten.c.sensor == hole.sensor,
                        forgotten.c.first_ns == hole.first_ns,
                        forgotten.c.stream == hole.stream,
                    )
                    known = database.execute(select(forgotten).where(same)).first()
                    if known is None:
                        database.execute(insert(forgotten).values(hole._asdict()))
                    elif known.messages < hole.messages:
                        database.execute(update(forgotten).where(same).values(hole._asdict()))
        except self._errors as error:
            raise self._failed(error) from error

    def note_held(
        self,
        streams: Collection[HeldConnection],
        waiting: Collection[Pending] | None,
        arrivals: Collection[ArrivalTimes] = (),
    ) -> None:
        try:
            with self._engine.begin() as database:
                telling.note(database, streams, waiting, arrivals)
        except self._errors as error:
            raise self._failed(error) from error

    def write(self, batch: Batch) -> int:
        # Each connection's rows are made when they are taken: until then it may have no id.
        rows = chain.from_iterable(piece.rows() for piece in batch.pieces)
        starts = range(0, max(batch.messages, 1), self._batch_size)
        try:
            for start in starts:
                with self._engine.begin() as database:
                    if start == 0:
                        self._insert_opened(database, batch.opened)
                    some = list(islice(rows, self._batch_size))
                    begun = batch.fragments if start == starts[-1] else []
                    if self._room is not None:
                        sizes = [len(row.payload) for row in some] + [len(data) for *_, data in begun]
                        batch.forgotten += self._room.make(database, sizes)
                    if some:
                        self._insert_messages(database, some, batch.pieces)
                    if start == starts[-1]:
                        _delete_fragments(database, batch.completed)
                        _insert_fragments(database, begun)
                        _update_closed(database, batch.closed)
        except self._errors as error:
            raise self._failed(error) from error
        return len(starts)

    def close(self) -> None:
        self._engine.dispose()
        if self._room is not None:
            self._room.close()

    def _prepare_readings(self, database: Connection, stream: str, layout: "Layout") -> None:
        columns = [(column.name, column.kind) for column in layout.columns]
        table = readings.prepare(database, self._name, stream, columns)
        insert_rows = inserter(table, self._engine.dialect)
        readings.refuse_too_long(database, self._name, table, layout.columns, insert_rows, self._errors)
        self._readings[stream] = layout, insert_rows

    def _insert_opened(self, database: Connection, rows: Iterable[ConnectionRow]) -> None:
        for row in rows:
            result = database.execute(
                insert(connections).values(
                    sensor=row.sensor,
                    port=row.port,
                    opened_ns=row.opened_ns,
                    first=row.first,
                    spooled=row.spooled,
                    token=row.token,
                    stream=row.stream,
                    **self._streams[row.stream].published,
                )
            )
            key = result.inserted_primary_key
            assert key is not None
            row.id = key[0]

    def _insert_messages(self, database: Connection, rows: list[MessageRow], pieces: Iterable[Piece]) -> None:
        self._insert_rows(database, rows)
        if not self._readings:
            return
        streams = {piece.row.id: piece.row.stream for piece in pieces}
        of_streams: dict[str, list[MessageRow]] = {}
        for key, some in groupby(rows, attrgetter("connection_id")):
            of_streams.setdefault(streams[key], []).extend(some)
        for stream, (layout, insert_rows) in self._readings.items():
            if of_stream := of_streams.get(stream):
                values = layout.values(row.payload for row in of_stream)
                keys = ((row.connection_id, row.sequence) for row in of_stream)
                insert_rows(database, [key + value for key, value in zip(keys, values, strict=True)])

    def _position(self, database: Connection, row: Row[Any]) -> Position:
        """Behind the last message and the fragments that follow it, or what is unfinished if it is closed."""
        last = database.execute(
            select(
                messages.c.sequence, messages.c.stream_offset, func.length(messages.c.payload).label("size")
            )
            .where(messages.c.connection_id == row.id)
            .order_by(messages.c.sequence.desc())
            .limit(1)
        ).first()
        offset = last.stream_offset + last.size + FRAME[row.framing] if last else 0
        following = select(fragments.c.bytes).where(
            fragments.c.connection_id == row.id, fragments.c.stream_offset >= offset
        )
        head = b"".join(database.execute(following.order_by(fragments.c.stream_offset)).scalars())
        sequence = last.sequence + 1 if last else row.pruned or 0
        closed = row.closed_ns is not None
        if closed and row.bytes is not None and row.bytes >= offset + len(head):
            return Position(row.id, sequence, row.bytes, row.unfinished or b"", closed=True)
        return Position(row.id, sequence, offset + len(head), head, closed=closed)

    def _failed(self, error: Exception) -> StoreError | Unavailable:
        """What to raise: Unavailable for what may pass without a change of the configuration."""
        found = fault(error)
        return (Unavailable if found.passing else StoreError)(found.told_of(self._name))


def _engine(url: URL) -> Engine:
    if url.get_backend_name() == "postgresql":
        return create_engine(url, connect_args={"connect_timeout": CONNECT_TIMEOUT})
    if url.get_backend_name() != "sqlite":
        return create_engine(url)
    # One connection for good: SQLite has one writer anyway, and the thread that commits did not open it.
    engine = create_engine(
        url, poolclass=StaticPool, connect_args={"check_same_thread": False, "timeout": LOCK_TIMEOUT}
    )

    @event.listens_for(engine, "connect")
    def set_durability(connection: DBAPIConnection, _: ConnectionPoolEntry) -> None:
        connection.isolation_level = None  # the driver begins no transaction: `begin` does, also for DDL
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")  # readers and the logger do not wait for each other
        cursor.execute("PRAGMA synchronous=FULL")  # a commit survives a power cut
        cursor.close()

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        begin_writing(connection, LOCK_TIMEOUT)

    return engine


def _delete_fragments(database: Connection, rows: Iterable[ConnectionRow]) -> None:
    for row in rows:
        database.execute(delete(fragments).where(fragments.c.connection_id == row.id))


def _insert_fragments(database: Connection, rows: Iterable[tuple[ConnectionRow, int, bytes]]) -> None:
    for row, offset, data in rows:
        database.execute(insert(fragments).values(connection_id=row.id, stream_offset=offset, bytes=data))


def _update_closed(database: Connection, rows: Iterable[ConnectionRow]) -> None:
    for row in rows:
        database.execute(
            update(connections)
            .where(connections.c.id == row.id)
            .values(
                closed_ns=row.closed_ns,
                bytes=row.size,
                digest=row.digest,
                reset=row.reset,
                reason=row.reason,
                unfinished=row.unfinished or None,
                spooled=row.spooled,
            )
        )


def _row(found: Row[Any]) -> ConnectionRow:
    return ConnectionRow(
        token=found.token or "",
        sensor=found.sensor,
        port=found.port,
        opened_ns=found.opened_ns,
        first=found.first,
        spooled=bool(found.spooled),
        id=found.id,
        closed_ns=found.closed_ns,
        size=found.bytes or 0,
        digest=found.digest,
        reset=bool(found.reset),
        reason=found.reason or "",
        unfinished=found.unfinished or b"",
        stream=found.stream or DATA,
    )


def _chunks(tokens: Collection[str], size: int) -> Iterator[list[str]]:
    source = iter(tokens)
    while some := list(islice(source, size)):
        yield some
