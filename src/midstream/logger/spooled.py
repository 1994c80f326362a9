"""What a hardworker's spool has to hand over: its SQLite file, read piece by piece, emptied from the front.

The spool's logger may be storing meanwhile: transactions are short, and of a connection that it still has the
last message stays, where it goes on.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Select, and_, delete, func, select, update
from sqlalchemy.exc import SQLAlchemyError

from midstream.closing import Closing
from midstream.page import Row
from midstream.storage import opening, schema
from midstream.storage.opening import failed, open_engine, stored_version
from midstream.storage.run import Run
from midstream.storage.sql_log import SqlLog
from midstream.storage.store import FRAME
from midstream.storage.stored import StoredConnection
from midstream.told import Forgotten

ENDED = "its logger ended, and nobody saw how the connection did"

_ENDLESS = 1 << 62  # a sequence


@dataclass(frozen=True, slots=True)
class SpoolState:
    """What a spool holds that no logger has. bytes: of streams, frames included. oldest_ns: when the first
    message was received, None if it has none. forgotten: messages of holes that are not handed over yet."""

    connections: int = 0
    messages: int = 0
    bytes: int = 0
    oldest_ns: int | None = None
    forgotten: int = 0

    def __bool__(self) -> bool:
        return bool(self.connections or self.forgotten)


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A connection of a spool. first and last: the sequences of its messages, None if it has none left. lost:
    its logger ended before it did."""

    connection: StoredConnection
    first: int | None
    last: int | None
    lost: bool

    @property
    def token(self) -> str:
        return self.connection.token

    @property
    def name(self) -> str:
        """For a person."""
        return f"the connection from {self.connection.sensor} port {self.connection.port}"

    def described(self) -> dict[str, Any]:
        """What a logger must know of it."""
        known = ("token", "sensor", "port", "opened_ns", "first", "framing", "stream")
        return {name: getattr(self.connection, name) for name in known}


class Spooled(Closing):
    """The spool at a path, which must be there. Everything raises StoreError."""

    def __init__(self, path: Path) -> None:
        url = URL.create("sqlite", database=str(path))
        self._log = SqlLog(url)
        try:
            self._engine, self._name = open_engine(url, read_only=False)
            with self._log.transaction() as database:
                names_streams = stored_version(database, self._name) >= schema.NAMES_STREAMS
                self._holes = [
                    each
                    for each in schema.forgotten.c
                    if names_streams or each is not schema.forgotten.c.stream
                ]
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._log.close()
        if hasattr(self, "_engine"):
            self._engine.dispose()

    def outgoing(self) -> list[Outgoing]:
        """All connections, in the order in which they opened."""
        with self._log.transaction() as database:
            found = {row.id: (row.first, row.last) for row in database.execute(self._ends())}
        return [
            Outgoing(each, *found[each.id], lost=_is_lost(each))
            for each in self._log.connections()
            if each.id in found
        ]

    def page(self, outgoing: Outgoing, start: int, size: int) -> list[Row]:
        """The next messages from a sequence on, of about so many bytes; none if none are there."""
        found, _ = self._log.piece(outgoing.connection, start, _ENDLESS, size)
        return [Row(each.sequence, each.offset, each.received_ns, each.crc, each.payload) for each in found]

    def end(self, outgoing: Outgoing) -> tuple[dict[str, Any], bytes]:
        """How a connection ended, and the bytes behind its last whole message."""
        connection = outgoing.connection
        facts = {
            "closed_ns": connection.closed_ns,
            "bytes": connection.size,
            "digest": connection.digest,
            "reset": connection.reset,
            "reason": connection.reason,
        }
        if connection.closed_ns is not None:
            return facts, connection.unfinished
        fragments = schema.fragments
        query = select(fragments.c.stream_offset, fragments.c.bytes).order_by(fragments.c.stream_offset)
        with self._log.transaction() as database:
            heads = database.execute(query.where(fragments.c.connection_id == connection.id)).all()
        size, closed = 0, connection.opened_ns
        for last in self.page(outgoing, outgoing.last, 1) if outgoing.last is not None else ():
            closed = last.received_ns
            size = (last.offset or 0) + len(last.payload) + FRAME[connection.framing]
        if heads:
            size = heads[-1].stream_offset + len(heads[-1].bytes)
        facts |= {"closed_ns": closed, "bytes": size, "reset": True, "reason": ENDED}
        return facts, b"".join(row.bytes for row in heads)

    def remove_messages(self, outgoing: Outgoing, below: int) -> None:
        """The logger has those of lower sequences. The last one stays, where the spool's logger goes on."""
        key = outgoing.connection.id
        messages, known = schema.messages, schema.connections
        with self._writing() as database:
            last = database.execute(
                select(func.max(messages.c.sequence)).where(messages.c.connection_id == key)
            ).scalar()
            if last is None:
                return
            below = min(below, last)
            self._delete(database, key, below)
            here = and_(known.c.id == key, known.c.token == outgoing.token)
            database.execute(update(known).where(here).values(pruned=below))

    def remove(self, outgoing: Outgoing) -> None:
        """The logger has all of it."""
        key, known = outgoing.connection.id, schema.connections
        with self._writing() as database:
            self._delete(database, key, _ENDLESS)
            database.execute(delete(schema.fragments).where(schema.fragments.c.connection_id == key))
            database.execute(delete(known).where(known.c.id == key, known.c.token == outgoing.token))

    def holes(self) -> list[Forgotten]:
        """What was forgotten and is not handed over."""
        with self._log.transaction() as database:
            return [Forgotten(*row) for row in database.execute(select(*self._holes))]

    def remove_holes(self, holes: Sequence[Forgotten]) -> None:
        """The logger knows of them. One that has grown meanwhile stays."""
        known = schema.forgotten
        with self._writing() as database:
            for hole in holes:
                said = hole._asdict()
                same = (column == said[column.name] for column in self._holes)
                database.execute(delete(known).where(*same))

    def state(self) -> SpoolState:
        ends = self._ends().subquery()
        begin, end = schema.messages.alias(), schema.messages.alias()
        query = select(
            begin.c.received_ns,
            (ends.c.last + 1 - ends.c.first).label("messages"),
            (end.c.stream_offset - begin.c.stream_offset + func.length(end.c.payload)).label("size"),
            ends.c.framing,
        ).select_from(ends)
        for alias, sequence in ((begin, ends.c.first), (end, ends.c.last)):
            query = query.outerjoin(
                alias, and_(alias.c.connection_id == ends.c.id, alias.c.sequence == sequence)
            )
        with self._log.transaction() as database:  # one query: the spool changes from one to the next
            rows = database.execute(query).all()
        there = [row for row in rows if row.messages is not None]
        return SpoolState(
            len(rows),
            sum(row.messages for row in there),
            sum(row.size + FRAME[row.framing] for row in there),
            min((row.received_ns for row in there), default=None),
            sum(hole.messages for hole in self.holes()),
        )

    def _ends(self) -> Select[Any]:
        """Of each connection the sequence of the first message that it has, and of the last."""
        messages, known = schema.messages, schema.connections
        first, last = (
            select(end(messages.c.sequence)).where(messages.c.connection_id == known.c.id).scalar_subquery()
            for end in (func.min, func.max)
        )
        return select(known.c.id, known.c.framing, first.label("first"), last.label("last"))

    def _delete(self, database: Connection, key: int, below: int) -> None:
        rows = schema.messages.c
        database.execute(delete(schema.messages).where(rows.connection_id == key, rows.sequence < below))

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        try:
            with self._engine.connect() as database:
                # What is removed and comes back with a power cut is sent again, and known there.
                database.exec_driver_sql("PRAGMA synchronous = NORMAL")
                opening.begin_writing(database, opening.LOCK_TIMEOUT)
                yield database
                database.commit()
        except SQLAlchemyError as error:
            raise failed(self._name, error) from error


def spool_state(path: Path) -> SpoolState:
    """Of the spool at a path, which need not be there; some look-ups per connection. Raises StoreError."""
    if not path.exists():
        return SpoolState()
    with Spooled(path) as spool:
        return spool.state()


def _is_lost(connection: StoredConnection) -> bool:
    run = Run.parse(connection.token)
    return connection.closed_ns is None and run is not None and run.ended
