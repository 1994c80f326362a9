"""Making room: the oldest messages go, whole, in transactions so short that the logger hardly waits.

`pruned` of a connection says how many went, so that nobody takes them for lost. The file of SQLite does not
shrink: the logger uses the room again.
"""

import time
from dataclasses import dataclass

from sqlalchemy import Connection, Engine, column, delete, func, inspect, select, table, update
from sqlalchemy.exc import SQLAlchemyError

from midstream.errors import StoreError
from midstream.logger import schema
from midstream.logger.opening import failed, open_engine, stored_version
from midstream.logger.store import FRAME

ROWS = 2000  # that a transaction removes
SAMPLES = 64  # of a connection, when it is looked for how much must go
PAUSE = 0.01  # seconds between two transactions, for the logger to have its turn


@dataclass(slots=True)
class Removed:
    """What went, or would go: `before_ns` is the time of the oldest messages that stay."""

    messages: int = 0
    bytes: int = 0  # of payload
    connections: int = 0  # that lost messages
    before_ns: int | None = None


@dataclass(frozen=True, slots=True)
class _Kept:
    """What there is of a connection. `start` and `end`: where in its stream, None if version 1 stored it."""

    id: int
    open: bool
    frame: int
    first: int
    last: int
    first_ns: int
    start: int | None
    end: int | None


def prune(
    url: str,
    *,
    keep_ns: int | None,
    keep_bytes: int | None,
    now_ns: int | None = None,
    dry_run: bool = False,
) -> Removed:
    """Remove what is older than `keep_ns`, and then the oldest messages until the streams stored have at most
    `keep_bytes`. None: keep all. It removes up to a 64th of each connection more than it must.

    StoreError if the database is not there, is of version 1, or cannot be written.
    """
    engine, name = open_engine(url, read_only=dry_run)
    try:
        with engine.connect() as database:
            if stored_version(database, name) < schema.VERSION:
                raise StoreError(
                    f"{name}: its tables have version 1, which cannot note what was removed. "
                    "What to do: start the logger once, which brings them up to date"
                )
            readings = schema.READINGS in inspect(database).get_table_names()
        now = time.time_ns() if now_ns is None else now_ns
        cutoff = now - keep_ns if keep_ns is not None else None
        connections = _connections(engine)
        if keep_bytes is not None:
            needed = _cutoff_for(engine, connections, keep_bytes, cutoff)
            cutoff = max((each for each in (cutoff, needed) if each is not None), default=None)
        removed = Removed(before_ns=cutoff)
        for connection in connections:
            if cutoff is not None and connection.first_ns < cutoff:
                _remove(engine, connection, cutoff, removed, readings, dry_run)
    except SQLAlchemyError as error:
        raise failed(name, error) from error
    finally:
        engine.dispose()
    return removed


def _connections(engine: Engine) -> list[_Kept]:
    """Those that have messages, the oldest first. Each is a transaction of its own."""
    table = schema.connections
    query = select(table.c.id, table.c.closed_ns, table.c.framing).order_by(table.c.opened_ns, table.c.id)
    with engine.connect() as database:
        known = database.execute(query).all()
    messages = schema.messages
    found = []
    for row in known:
        ends = select(
            messages.c.sequence,
            messages.c.received_ns,
            messages.c.stream_offset,
            func.length(messages.c.payload).label("size"),
        ).where(messages.c.connection_id == row.id)
        with engine.connect() as database:
            first = database.execute(ends.order_by(messages.c.sequence).limit(1)).first()
            last = database.execute(ends.order_by(messages.c.sequence.desc()).limit(1)).first()
        if first is None or last is None:
            continue
        frame = FRAME[row.framing or "fixed"]
        end = None if last.stream_offset is None else last.stream_offset + last.size + frame
        open_ = row.closed_ns is None
        kept = (first.sequence, last.sequence, first.received_ns, first.stream_offset, end)
        found.append(_Kept(row.id, open_, frame, *kept))
    return found


def _remove(
    engine: Engine,
    connection: _Kept,
    cutoff: int,
    removed: Removed,
    readings: bool,
    dry_run: bool,
) -> None:
    """The messages of a connection in front of its first that came at the cutoff or later."""
    messages = schema.messages
    keep = int(connection.open)  # by its last message the logger knows where to go on
    position, some = connection.first, False
    while True:
        with engine.begin() as database:
            oldest = database.execute(
                select(messages.c.sequence, messages.c.received_ns, func.length(messages.c.payload))
                .where(messages.c.connection_id == connection.id, messages.c.sequence >= position)
                .order_by(messages.c.sequence)
                .limit(ROWS + 1)
            ).all()
            count = next((index for index, row in enumerate(oldest) if row[1] >= cutoff), len(oldest))
            count = min(count, ROWS, len(oldest) - keep)
            if count:
                position = oldest[count - 1][0] + 1
                if not dry_run:
                    _delete(database, connection.id, position, readings)
        removed.messages += count
        removed.bytes += sum(row[2] for row in oldest[:count])
        removed.connections += bool(count) and not some
        some = some or bool(count)
        if count < ROWS:
            return
        if not dry_run:
            time.sleep(PAUSE)


def _delete(database: Connection, key: int, below: int, readings: bool) -> None:
    tables = [schema.messages]
    if readings:
        tables.append(table(schema.READINGS, column("connection_id"), column("sequence")))  # type: ignore[arg-type]
    for each in tables:
        database.execute(delete(each).where(each.c.connection_id == key, each.c.sequence < below))
    database.execute(update(schema.connections).where(schema.connections.c.id == key).values(pruned=below))


def _cutoff_for(engine: Engine, connections: list[_Kept], keep_bytes: int, cutoff: int | None) -> int | None:
    """The time before which messages must go for the rest to have at most `keep_bytes`; None: nothing must.

    Each connection is looked at in SAMPLES places, where the offset in its stream tells what lies before.
    """
    sizes = [each.end - each.start for each in connections if each.start is not None and each.end is not None]
    if sum(sizes) <= keep_bytes:
        return None
    pieces: list[tuple[int, int]] = []  # when the last message of a piece came, and the piece's bytes
    for connection in connections:
        if connection.start is None:
            continue
        step = max(1, -(-(connection.last + 1 - connection.first) // SAMPLES))
        offset, latest = connection.start, connection.first_ns
        for sequence in range(connection.first, connection.last + 1, step):
            last = min(sequence + step - 1, connection.last)
            found = _at(engine, connection, last)
            if found is not None:
                latest = max(latest, found[0])
                pieces.append((latest, found[1] - offset))
                offset = found[1]
    total = sum(size for _, size in pieces)
    gone = 0
    needed = None
    for received, size in sorted(pieces):
        aged = cutoff is not None and received < cutoff
        if not aged and total - gone <= keep_bytes:
            break
        gone += size
        needed = received + 1
    return needed


def _at(engine: Engine, connection: _Kept, sequence: int) -> tuple[int, int] | None:
    """When the last message up to a sequence came, and where its frame ends in the stream."""
    messages = schema.messages
    query = (
        select(messages.c.received_ns, messages.c.stream_offset, func.length(messages.c.payload))
        .where(messages.c.connection_id == connection.id, messages.c.sequence <= sequence)
        .order_by(messages.c.sequence.desc())
        .limit(1)
    )
    with engine.connect() as opened:
        row = opened.execute(query).first()
    if row is None or row[1] is None:
        return None
    return row[0], row[1] + row[2] + connection.frame
