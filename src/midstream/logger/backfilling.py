"""Takes what a hardworker's spool sends into the logger's database: each message once, whatever dies.

The hardworker names a connection ({"open": …}) and is told with which message to go on ({"next": SEQUENCE}),
or why that is not possible ({"refused": WHY}, {"busy": WHY}). It sends pages of messages, each committed
before it is acknowledged by another {"next": …}, and the end of the connection ({"end": …}, {"ended": true}).
Nothing is remembered here: for each page the database itself says which messages it lacks.

A connection whose beginning this logger received itself is continued: it is known by its stream, sensor,
port and first sequence number, and by when it opened, since some sensors begin with the same numbers after
each start. As long as the logger may still be storing it, it is busy.

Of some connections the spool has parts of the stream and no messages (store.STREAM): what the ring had
retained. They go on where the logger's own messages end, and are cut here.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from midstream.config import DATA, Config
from midstream.errors import NetworkError
from midstream.line import Head, Line
from midstream.logger.streamed import Streamed
from midstream.page import Row, unpack
from midstream.storage.databases import open_store
from midstream.storage.formats import Formats
from midstream.storage.run import Run
from midstream.storage.store import (
    STREAM,
    Batch,
    ConnectionRow,
    Piece,
    Position,
    Store,
    Unavailable,
)
from midstream.told import Forgotten

TURN = 5.0  # seconds to wait for another hardworker's page
SAME = 3600 * 10**9  # ns by which two hosts may differ about when a connection opened


class Backfilling:
    """Answers hardworkers. Pages of several are written one after the other."""

    def __init__(self, config: Config, streams: Formats) -> None:
        self._config, self._streams = config, streams
        self._turn = threading.Lock()

    def answer(self, line: Line, _: Head) -> None:
        """Until the hardworker ends the line."""
        with open_store(self._config, self._streams) as store:
            line.send({"ready": True})
            self._serve(line, store)

    def _serve(self, line: Line, store: Store) -> None:
        connection: ConnectionRow | None = None  # the spool's
        is_stream = False
        while True:
            head, data = line.receive()
            if "here" in head:  # it waits, so that its rate is kept
                continue
            try:
                with self._alone():
                    if "open" in head:
                        connection = _described(head["open"])
                        is_stream = head["open"]["framing"] == STREAM
                        answer = self._open(store, connection, head["open"]["framing"])
                    elif "forgotten" in head:
                        answer = _note_forgotten(store, head["forgotten"])
                    elif connection is None:
                        raise KeyError("open")
                    elif "end" in head:
                        unfinished = None if is_stream else bytes(data)
                        answer = _end(store, connection, head["end"], unfinished)
                    elif is_stream:
                        answer = self._take_stream(store, connection, unpack(head["messages"], data))
                    else:
                        answer = self._take(store, connection, unpack(head["messages"], data))
            except (KeyError, TypeError, ValueError) as error:
                raise NetworkError("no request of a backfill") from error
            line.send(answer)

    def _open(self, store: Store, connection: ConnectionRow, framing: object) -> Head:
        stream = self._streams.get(connection.stream)
        if stream is None:
            return {
                "refused": f"it is of the stream {connection.stream}, and the logger has "
                f"{', '.join(self._streams)}. What to do: name that stream in the hardworker's config.toml "
                "again, until all of it is sent"
            }
        if framing not in (STREAM, stream.framing):
            return {
                "refused": f'the framing of its stream {connection.stream} is "{framing}", and the logger\'s '
                f'"{stream.framing}"'
            }
        known = _own(store, connection)
        if known is not None and known.token != connection.token and _is_open(known):
            return {"busy": "the logger still has this connection"}
        if framing == STREAM:  # the spool's own numbers: what the logger has already it leaves out
            return {"next": 0}
        position = store.resume([known]).get(known.token) if known is not None else None
        return {"next": position.sequence if position is not None else 0}

    def _take(self, store: Store, connection: ConnectionRow, rows: list[Row]) -> Head:
        stream = self._streams[connection.stream]
        if stream.fixed_size is not None and any(len(row.payload) != stream.fixed_size for row in rows):
            return {
                "refused": f"a message of the stream {connection.stream} has another size than the logger's "
                f"{stream.fixed_size} bytes"
            }
        batch, own = Batch(), _own(store, connection)
        if own is None:
            own = connection
            batch.opened.append(own)
        position = store.resume([own]).get(own.token)
        following = position.sequence if position is not None else 0
        missing = [row for row in rows if row.sequence >= following]
        batch.pieces += _pieces(own, missing, stream.frame)
        batch.messages = len(missing)
        if position is not None and position.head and missing:
            batch.completed.append(own)
        if missing:
            store.write(batch)
            following = missing[-1].sequence + 1
        return {"next": following}

    def _take_stream(self, store: Store, connection: ConnectionRow, rows: list[Row]) -> Head:
        """Each page is committed whole, the beginning of a message too that the next page goes on with."""
        own = _own(store, connection)
        position = store.resume([own]).get(own.token) if own is not None else None
        own = own or connection
        stream = self._streams[connection.stream]
        streamed = Streamed(own, position or Position(0, 0, 0), stream)
        for row in rows:
            if row.offset is None:
                raise NetworkError("a part of a stream has no place in it")
            if not streamed.take(row.offset, row.received_ns, row.payload):
                return {"refused": "its beginning is not in this log"}
        batch = streamed.batch()
        if position is None:
            batch.opened.append(own)
        if batch:
            store.write(batch)
        if rest := streamed.rest():
            store.write(rest)
        return {"next": rows[-1].sequence + 1}

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """When it is this line's turn: what is read of the database is so until it is written."""
        if not self._turn.acquire(timeout=TURN):
            raise Unavailable("the logger's database does not answer. What to do: see that it runs")
        try:
            yield
        finally:
            self._turn.release()


def _end(store: Store, connection: ConnectionRow, facts: dict[str, Any], unfinished: bytes | None) -> Head:
    """How it ended is told by the one that saw more of it. unfinished: bytes behind its last message, None if
    all of them are here."""
    batch, own = Batch(), _own(store, connection)
    position = store.resume([own]).get(own.token) if own is not None else None
    if own is None:
        own = connection
        batch.opened.append(own)
    size, beginning = int(facts["bytes"]), position.head if position is not None else b""
    if unfinished is None:
        size, unfinished = position.offset if position is not None else 0, beginning
        batch.completed.append(own)
        beginning = b""
    if own.closed_ns is not None and own.size >= size:
        return {"ended": True}
    if beginning:
        store.write(Batch(completed=[own]))  # it is also in what the hardworker says is unfinished
    own.closed_ns, own.size = int(facts["closed_ns"]), size
    own.digest, own.reset, own.reason = facts["digest"], bool(facts["reset"]), str(facts["reason"])
    own.unfinished, own.spooled = unfinished, True
    batch.closed.append(own)
    store.write(batch)
    return {"ended": True}


def _note_forgotten(store: Store, holes: list[Any]) -> Head:
    store.note_forgotten([Forgotten.parse(hole) for hole in holes])
    return {"noted": len(holes)}


def _own(store: Store, connection: ConnectionRow) -> ConnectionRow | None:
    """What the store has of the spool's connection."""
    known = store.find(connection)
    if known is None or known.token == connection.token:
        return known
    return known if abs(known.opened_ns - connection.opened_ns) <= SAME else None


def _is_open(known: ConnectionRow) -> bool:
    """May its logger still store something of it?"""
    run = Run.parse(known.token)
    return known.closed_ns is None and not (run is not None and run.ended)


def _pieces(own: ConnectionRow, rows: list[Row], frame: int) -> Iterator[Piece]:
    """The rows, cut where messages are missing between them."""
    piece: Piece | None = None
    crcs: list[int] = []
    end = 0
    for row in rows:
        if row.offset is None or row.crc is None:
            raise NetworkError("a message of a spool has no place in its stream")
        if piece is None or (row.sequence, row.offset) != (piece.sequence + len(piece.payloads), end):
            if piece is not None:
                yield piece
            crcs = []
            piece = Piece(own, row.sequence, row.offset, [], [], frame, crcs)
        piece.payloads.append(row.payload)
        piece.received_ns.append(row.received_ns)
        crcs.append(row.crc)
        end = row.offset + len(row.payload) + frame
    if piece is not None:
        yield piece


def _described(found: dict[str, Any]) -> ConnectionRow:
    return ConnectionRow(
        token=str(found["token"]),
        sensor=str(found["sensor"]),
        port=int(found["port"]),
        opened_ns=int(found["opened_ns"]),
        first=None if found["first"] is None else int(found["first"]),
        spooled=True,
        stream=str(found.get("stream", DATA)),
    )
