"""What a database must do for the logger, and what is written into it.

A store is used by one thread at a time. Each message is complete in itself, with its place in the stream: who
comes after a failure, or after a dead worker, asks `resume` how far it came.
"""

import struct
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol

from midstream.closing import Closing
from midstream.config import DATA
from midstream.framing import PREFIX
from midstream.told import ArrivalTimes, Forgotten, HeldConnection, Pending

STREAM: Final = (
    "stream"  # in the place of a framing: the rows are parts of a stream, whatever messages are in it
)
FRAME = {"fixed": 0, "length": PREFIX, "line": 1, STREAM: 0}  # bytes of a message's frame besides its payload


_HEAD = struct.Struct("<qqq")


def checksum(sequence: int, stream_offset: int, received_ns: int, payload: bytes) -> int:
    """The crc of a row: CRC-32 of the three numbers (64 bits each, little-endian) and the payload."""
    return zlib.crc32(payload, zlib.crc32(_HEAD.pack(sequence, stream_offset, received_ns)))


class Unavailable(Exception):  # noqa: N818  it is a state that passes, not somebody's error
    """The database cannot be written just now; its text says why and what the user may do about it."""


@dataclass(slots=True, eq=False)
class ConnectionRow:
    """A connection as the database will know it; `id` is given by the first commit."""

    token: str  # the holder's name for it: unique among all connections ever
    sensor: str
    port: int
    opened_ns: int
    first: int | None = None  # TCP's sequence number of the stream's first byte, None if it is not known
    spooled: bool = False  # it comes from the hardworker's spool
    id: int | None = None
    closed_ns: int | None = None
    size: int = 0  # bytes of the stream
    digest: str | None = None  # SHA-256 of the stream, None if it is not known
    reset: bool = False
    reason: str = ""
    unfinished: bytes = b""
    stream: str = DATA  # the kind of its messages


class MessageRow(NamedTuple):
    """In the order of the columns of `messages`."""

    connection_id: int
    sequence: int
    received_ns: int
    payload: bytes
    stream_offset: int
    crc: int


@dataclass(slots=True)
class Piece:
    """Messages of one connection in a row, numbered from `sequence`; the first frame begins at `offset`."""

    row: ConnectionRow
    sequence: int
    offset: int
    payloads: list[bytes]
    received_ns: list[int]
    frame: int  # bytes of a message's frame besides its payload
    crcs: list[int] | None = None  # as another logger has written them; None: they are made here

    def rows(self) -> Iterator[MessageRow]:
        """The rows of the messages, once the connection has its id."""
        key = self.row.id
        assert key is not None
        offset = self.offset
        for index, (payload, received) in enumerate(zip(self.payloads, self.received_ns, strict=True)):
            sequence = self.sequence + index
            crc = self.crcs[index] if self.crcs else checksum(sequence, offset, received, payload)
            yield MessageRow(key, sequence, received, payload, offset, crc)
            offset += len(payload) + self.frame


@dataclass(slots=True)
class Batch:
    """What waits for its commit."""

    opened: list[ConnectionRow] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    fragments: list[tuple[ConnectionRow, int, bytes]] = field(default_factory=list)
    """connection, offset in its stream, the bytes of a message that is not whole yet"""
    completed: list[ConnectionRow] = field(default_factory=list)
    """Connections whose fragments are a message now, or what is left at the end."""
    closed: list[ConnectionRow] = field(default_factory=list)
    messages: int = 0
    payload_bytes: int = 0
    forgotten: int = 0
    """Messages that the store has given up to make room for these."""

    def __bool__(self) -> bool:
        return bool(self.opened or self.pieces or self.fragments or self.closed)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a connection is committed."""

    id: int
    sequence: int  # of the next message
    offset: int  # in the stream, of the next byte
    head: bytes = b""  # committed bytes in front of it that belong to the next message
    closed: bool = False


class Store(Closing, Protocol):
    """Opening one raises StoreError for what only the user can mend, Unavailable for what may pass."""

    def resume(self, rows: Collection[ConnectionRow]) -> Mapping[str, Position]:
        """The position of each of these connections that the store knows, by token. Raises as `write`."""

    def find(self, row: ConnectionRow) -> ConnectionRow | None:
        """The store's own row of the connection that another logger's row is of; None if it knows none.

        By its token, else by stream, sensor, port and `first`: of several the one that opened at the nearest
        time.
        Raises as `write`.
        """

    def note_forgotten(self, holes: Collection[Forgotten]) -> None:
        """Commit what a spool has forgotten; a hole that is known may have grown. Raises as `write`."""

    def note_held(
        self,
        streams: Collection[HeldConnection],
        waiting: Collection[Pending] | None,
        arrivals: Collection[ArrivalTimes] = (),
    ) -> None:
        """Commit what a hardworker holds, and when it came. waiting: all that is in its spool, None: that is
        as it was. A connection of which only the hardworker knows the end is closed. Raises as `write`."""

    def write(self, batch: Batch) -> int:
        """Commit a batch and return how many transactions it took; ids of opened connections are filled in.
        So is what was forgotten.

        New connections go first and ends last. Raises StoreError or Unavailable; a prefix of the batch may be
        committed then, also all of it.
        """
