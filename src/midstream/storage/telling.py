"""What a hardworker tells, in the tables of a SQL database; and how connections end of which only it knows.

A row never loses bytes: what was held once, was held. A connection whose logger died stays without an end
in `connections`; when the hardworker has told how it ended, and nothing of it waits in the spool, it is
closed here.
"""

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Row,
    Select,
    and_,
    case,
    delete,
    exists,
    func,
    insert,
    or_,
    select,
    tuple_,
    update,
)

from midstream.storage.run import Run
from midstream.storage.schema import arrivals, connections, forgotten, held, messages, pending, stream_of
from midstream.told import CLOSED, OPEN, UNTOLD, ArrivalTimes, HeldConnection, Pending

_ENDINGS = {
    CLOSED: "its logger died; the sensor had ended it after {:,} bytes",
    "reset": "its logger died; it was reset after {:,} bytes",
    "lost": "its logger died, and the hardworker forgot it after {:,} bytes or more",
}


def note(
    database: Connection,
    streams: Iterable[HeldConnection],
    waiting: Collection[Pending] | None,
    told: Iterable[ArrivalTimes],
) -> None:
    """In one transaction. waiting: all that is in the spool; None: nothing was said of it."""
    if waiting is not None:
        database.execute(delete(pending))
        for each in waiting:
            database.execute(insert(pending).values(dict(zip(pending.c.keys(), each.values, strict=True))))
    for some in told:
        values = dict(zip(arrivals.c.keys(), some.values, strict=True))
        same = and_(*(column == values[column.name] for column in arrivals.primary_key))
        database.execute(delete(arrivals).where(same))  # an answer may have been lost
        database.execute(insert(arrivals).values(values))
    for stream in streams:
        _note_stream(database, stream)
        if stream.state not in (OPEN, UNTOLD):
            _close_dead(database, stream)
    if waiting is not None:  # what waited may have come, and a logger have died since an end was told
        for row in database.execute(_ended_here()).all():
            _close_dead(database, HeldConnection(*row))


def forget(database: Connection) -> None:
    """What was told of connections of which nothing is left to compare with."""
    has_messages = exists().where(messages.c.connection_id == connections.c.id)
    is_left = or_(connections.c.closed_ns.is_(None), has_messages)
    oldest = database.execute(select(func.min(connections.c.opened_ns)).where(is_left)).scalar()
    before = (1 << 62) if oldest is None else oldest
    same = _same(held.c)
    gone = held.c.state != OPEN, held.c.opened_ns < before, ~exists().where(same, is_left)
    key = [column.name for column in held.primary_key]
    names = select(*(held.c[each] for each in key)).where(*gone)
    name = tuple_(*(arrivals.c[each] for each in key))
    database.execute(delete(arrivals).where(name.in_(names)))
    database.execute(delete(held).where(*gone))
    _forget_arrivals(database)
    database.execute(delete(forgotten).where(forgotten.c.last_ns < before))


def _forget_arrivals(database: Connection) -> None:
    """Those of messages that were removed, of connections that have others."""
    first_left = and_(
        messages.c.connection_id == connections.c.id, messages.c.sequence == connections.c.pruned
    )
    known = connections.c.sensor, connections.c.port, connections.c.first, stream_of()
    query = select(*known, messages.c.stream_offset).where(first_left, connections.c.pruned > 0)
    for sensor, port, first, stream, offset in database.execute(query).all():
        database.execute(
            delete(arrivals).where(
                arrivals.c.sensor == sensor,
                arrivals.c.port == port,
                arrivals.c.first == first,
                arrivals.c.stream == stream,
                arrivals.c.stream_end <= offset,
            )
        )


def _note_stream(database: Connection, stream: HeldConnection) -> None:
    there = and_(
        held.c.sensor == stream.sensor,
        held.c.port == stream.port,
        held.c.first == stream.first,
        held.c.opened_ns == stream.opened_ns,
        held.c.stream == stream.stream,
    )
    most = case((held.c.held_bytes < stream.bytes, stream.bytes), else_=held.c.held_bytes)
    changed = (
        update(held).where(there).values(held_bytes=most, state=stream.state, destination_here=stream.here)
    )
    if not database.execute(changed).rowcount:
        database.execute(insert(held).values(dict(zip(held.c.keys(), stream.values, strict=True))))


def _ended_here() -> Select[Any]:
    """What was held, and has ended, of connections that have no end here."""
    same = _same(held.c)
    ended = held.c.state.not_in((OPEN, UNTOLD))
    return select(held).where(exists().where(same, connections.c.closed_ns.is_(None)), ended)


def _close_dead(database: Connection, stream: HeldConnection) -> None:
    row = database.execute(
        select(connections)
        .where(_same(stream), connections.c.closed_ns.is_(None))
        .order_by(func.abs(connections.c.opened_ns - stream.opened_ns))
        .limit(1)
    ).first()
    if row is None or not _is_dead(row) or _waits(database, stream):
        return
    last = select(func.max(messages.c.received_ns)).where(messages.c.connection_id == row.id)
    database.execute(
        update(connections)
        .where(connections.c.id == row.id)
        .values(
            closed_ns=database.execute(last).scalar() or row.opened_ns,
            reset=stream.state != CLOSED,
            reason=_ENDINGS[stream.state].format(stream.bytes),
        )
    )


def _is_dead(row: Row[Any]) -> bool:
    run = Run.parse(row.token or "")
    return run is not None and run.ended


def _waits(database: Connection, stream: HeldConnection) -> bool:
    there = select(pending.c.port).where(
        pending.c.sensor == stream.sensor,
        pending.c.port == stream.port,
        pending.c.first == stream.first,
        pending.c.stream == stream.stream,
    )
    return database.execute(there).first() is not None


def _same(told: Any) -> ColumnElement[bool]:
    """Is a connection the one that this was told of: a HeldConnection, or columns of `held`?"""
    return and_(
        connections.c.sensor == told.sensor,
        connections.c.port == told.port,
        connections.c.first == told.first,
        stream_of() == told.stream,
    )
