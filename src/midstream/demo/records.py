"""What the programs wrote down: the sensors' records, the hardworker's record, the logger's database."""

import hashlib
import mmap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from sqlalchemy import Connection, create_engine, select
from sqlalchemy.exc import SQLAlchemyError

from midstream.config import DATA
from midstream.demo.application import HEAD
from midstream.demo.verdict import NOWHERE, Arrivals, Stream, owner
from midstream.errors import StoreError
from midstream.framing import Framing
from midstream.hardworker.recording import recorded_dtype
from midstream.load import SENT
from midstream.load import message as wire
from midstream.sensor import SENT_DTYPE
from midstream.storage.schema import connections, messages

CHUNK = 16 << 20  # bytes of payload in memory at a time


def sent(path: Path) -> np.ndarray:
    """A sensor's record."""
    return _mapped(path, SENT_DTYPE)


def sent_by_load(path: Path, framings: Sequence[Framing]) -> list[np.ndarray]:
    """The load's record as each of its connections would have written it, were it a sensor."""
    rows = _mapped(path, SENT)
    return [
        _as_sensor(rows[rows["connection"] == connection], framing)
        for connection, framing in enumerate(framings)
    ]


def _as_sensor(rows: np.ndarray, framing: Framing) -> np.ndarray:
    """The messages of one connection: what each was follows from what the record says."""
    found = np.empty(len(rows), SENT_DTYPE)
    found["sequence"], found["time"] = rows["sequence"], rows["time"]
    for place, (sequence, time_ns, connection, size) in enumerate(rows.tolist()):
        payload = wire.payload(framing, connection, sequence, time_ns, size)
        found["digest"][place] = np.void(hashlib.blake2b(payload, digest_size=16).digest())
    return found


def delivered_to_application(
    path: Path, sent: Mapping[Stream, np.ndarray], framing: Framing
) -> Iterator[Arrivals]:
    """The record of the application of one stream (application.py), connection by connection in pieces. Whose
    a connection is, its messages tell."""
    known: dict[int, Stream] = {}
    for piece in _recorded(path):
        by_connection: dict[int, list[tuple[int, int, bytes]]] = defaultdict(list)
        for time_ns, connection, number, payload in piece:
            by_connection[connection].append((number, time_ns, payload))
        for connection, rows in by_connection.items():
            numbers, times, payloads = zip(*rows, strict=True)
            if connection not in known and (found := owner(sent, payloads, framing)):
                known[connection] = found
            yield Arrivals(
                known.get(connection, ("", connection)),
                np.array(numbers, np.int64),
                payloads,
                np.array(times, np.uint64),
            )


def _recorded(path: Path) -> Iterator[list[tuple[int, int, int, bytes]]]:
    """Of each message: time, connection, number, payload; in pieces of about CHUNK bytes."""
    with path.open("rb") as file:
        if not path.stat().st_size:
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            piece, taken, at = [], 0, 0
            while at + HEAD.size <= len(data):
                time_ns, connection, number, size = HEAD.unpack_from(data, at)
                at += HEAD.size + size
                taken += size
                piece.append((time_ns, connection, number, data[at - size : at]))
                if taken >= CHUNK:
                    yield piece
                    piece, taken = [], 0
            yield piece


def delivered(path: Path, size: int, sensors: Sequence[str]) -> Iterator[Arrivals]:
    """The hardworker's record, stream by stream in pieces; `sensors` are the IP addresses of const.toml."""
    rows = _mapped(path, recorded_dtype(size))
    step = _per_chunk(size)
    for start in range(0, len(rows), step):
        piece = rows[start : start + step]
        head = piece["message"]
        keys = head["sensor"].astype(np.uint32) << 16 | head["port"]
        for key in np.unique(keys):
            chosen = np.flatnonzero(keys == key)
            offsets = head["offset"][chosen].astype(np.int64)
            number = int(key) >> 16
            yield Arrivals(
                stream=(sensors[number] if number < len(sensors) else "", int(key) & 0xFFFF),
                positions=np.where(offsets % size == 0, offsets // size, NOWHERE),
                payloads=head["payload"][chosen],
                times=piece["delivered"][chosen],
            )


def logged(
    url: str,
    name: str,
    sent: Mapping[Stream, np.ndarray],
    since_ns: int,
    size: int,
    *,
    relay: str = "",
    framing: Framing = "fixed",
) -> Iterator[Arrivals]:
    """What the database at `url` holds of a stream's connections that opened after `since_ns`: of the stream
    that config.toml calls `name`, with messages of up to `size` bytes.

    Where the hardworker relays (`relay` is then its address) the logger's connections come from there, and
    their messages tell which stream they continue. Raises StoreError if the database cannot be read.
    """
    try:
        engine = create_engine(url)
        try:
            with engine.connect() as database:
                recent = select(connections).where(connections.c.opened_ns >= since_ns)
                for row in database.execute(recent.order_by(connections.c.id)).all():
                    if (row.stream or DATA) != name:
                        continue
                    stream: Stream | None = (row.sensor, row.port)
                    if stream not in sent and row.sensor != relay:
                        continue  # of another run, in a database that others use too
                    for positions, payloads in _stored(database, row.id, _per_chunk(size)):
                        if stream not in sent:
                            stream = owner(sent, payloads, framing)
                        yield Arrivals(stream or (row.sensor, row.port), positions, payloads)
        finally:
            engine.dispose()
    except SQLAlchemyError as error:
        raise StoreError(
            f"the logger's database cannot be read back ({str(error).splitlines()[0]}); "
            "see that it still runs and lets this user read"
        ) from error


def _stored(database: Connection, connection: int, step: int) -> Iterator[tuple[np.ndarray, list[bytes]]]:
    """A connection's messages in pieces, with their numbers."""
    query = (
        select(messages.c.sequence, messages.c.payload)
        .where(messages.c.connection_id == connection)
        .order_by(messages.c.sequence)
        .execution_options(yield_per=step)
    )
    for rows in database.execute(query).partitions():
        yield np.array([row.sequence for row in rows], np.int64), [row.payload for row in rows]


def _mapped(path: Path, dtype: np.dtype[np.void]) -> np.ndarray:
    """A file's whole records, mapped into memory (an empty file cannot be)."""
    count = path.stat().st_size // dtype.itemsize
    return np.memmap(path, dtype, "r", shape=(count,)) if count else np.empty(0, dtype)


def _per_chunk(size: int) -> int:
    return max(1, CHUNK // size)
