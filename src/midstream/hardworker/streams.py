"""Byte streams put in order again: the reader's half of what TCP calls reassembly.

The program stores every segment with its offset, also one behind a hole, and it may store a byte twice
where segments overlap. Here each byte is delivered once and in order; of two versions of a byte the one
that was stored first is delivered.
"""

import struct
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from typing import Self

import numpy as np

from midstream.framing import Decoder

OPEN_STREAM = np.dtype(
    [("connection", "<u4"), ("aligned", "<u4"), ("next", "<u8"), ("sequence", "<u8"), ("end", "<u8")]
)
"""struct open of ring.c: an open connection, as the look at a whole batch and the journal need it."""

_ALIGNED, _BROKEN, _NO_END = 1, 2, (1 << 64) - 1
_PIECE = struct.Struct("<IIQ")  # connection, length, offset

Piece = tuple[int, int, bytes]
"""Connection, offset in its stream, and bytes that belong to no message delivered."""


class Stream:
    """One connection's bytes.

    `push` returns what has come in order. Bytes behind a hole wait in `early`: at most as many as the program
    lets through (EARLY_WINDOW in connection.h, 1 MiB).
    """

    __slots__ = ("_early", "_early_kept", "_kept", "broken", "carry", "decoder", "end", "next", "sequence")

    def __init__(self, start: int = 0, decoder: Decoder | None = None) -> None:
        self.next = start  # the offset of the first byte that has not come in order
        self.end: int | None = None  # where the stream ends, once known
        self.carry = bytearray()  # fixed framing: the delivered part of a message that is not whole yet
        self.decoder = decoder  # other framings: it keeps that part itself
        self.sequence = 0  # other framings: of the next message
        self.broken = False  # the bytes do not follow the framing
        self._early: list[tuple[int, bytes]] = []  # sorted, disjoint
        self._kept = start  # bytes before this offset need not be remembered again,
        self._early_kept: set[int] = set()  # nor those that wait at these offsets

    @property
    def has_early(self) -> bool:
        """Are there bytes behind a hole?"""
        return bool(self._early)

    @property
    def finished(self) -> bool:
        """Has every byte up to the stream's end been delivered?

        A stream joined in the middle may end before the message at which it would have begun here.
        """
        return self.end is not None and self.next >= self.end

    @property
    def start(self) -> int:
        """The offset of the first byte that belongs to no message delivered."""
        if self.broken:
            return self.next
        return self.next - (self.decoder.pending if self.decoder else len(self.carry))

    @property
    def fresh_size(self) -> int:
        """At most so many bytes do the fresh pieces have, each with its place in the journal."""
        held = self.next - max(self.start, self._kept)
        early = sum(len(p) + _PIECE.size for offset, p in self._early if offset not in self._early_kept)
        return early + (held + _PIECE.size if held > 0 else 0)

    def fresh(self) -> Iterator[tuple[int, bytes]]:
        """The bytes, and their offsets, that belong to no message delivered and were not kept: `push` takes
        them back."""
        count = self.next - max(self.start, self._kept)
        if count > 0:
            held = self.decoder.newest(count) if self.decoder else bytes(self.carry[-count:])
            yield self.next - count, held
        run, end = bytearray(), 0
        for offset, piece in self._early:
            if offset in self._early_kept:
                continue
            if run and offset != end:
                yield end - len(run), bytes(run)
                run.clear()
            run += piece
            end = offset + len(piece)
        if run:
            yield end - len(run), bytes(run)

    def keep(self) -> None:
        """What is fresh now has been kept."""
        self._kept = self.next
        self._early_kept = {offset for offset, _ in self._early}

    def push(self, offset: int, data: bytes) -> bytes:
        """Take a segment; return the bytes that are now next in order, maybe none."""
        self._keep(offset, data)
        ready = []
        while self._early and self._early[0][0] == self.next:
            _, piece = self._early.pop(0)
            ready.append(piece)
            self.next += len(piece)
        return b"".join(ready)

    def _keep(self, offset: int, data: bytes) -> None:
        """Keep those bytes of a segment that are neither delivered nor kept already."""
        start, end = max(offset, self.next), offset + len(data)
        position = bisect_left(self._early, (start,))
        if position and self._end_of(position - 1) > start:
            start = self._end_of(position - 1)
        while start < end:
            following = self._early[position][0] if position < len(self._early) else end
            stop = min(end, following)
            if start < stop:
                self._early.insert(position, (start, data[start - offset : stop - offset]))
                position += 1
            if position == len(self._early):
                return
            start = max(stop, self._end_of(position))
            position += 1

    def _end_of(self, position: int) -> int:
        start, piece = self._early[position]
        return start + len(piece)


class Streams:
    """The open connections by number, and beside them the table in which ring.c looks.

    The table is the authority on `next` while a stream is aligned, for ring.c moves it: `checkout` brings a
    stream up to date before it is pushed to, and `checkin` writes it back. In the journal the table and the
    `pending` bytes, with the pieces that were kept elsewhere (spill.py), say all that is needed to go on:
    `restore` reads them.
    """

    def __init__(self) -> None:
        self._streams: dict[int, Stream] = {}
        self._unaligned: dict[int, Stream] = {}
        self.table = np.zeros(64, OPEN_STREAM)
        self.count = 0
        self._shared = np.zeros(2, "<u8")  # struct streams of ring.c: where the table is now, its rows
        self.address = self._shared.ctypes.data
        self._share()

    @classmethod
    def restore(
        cls,
        table: np.ndarray,
        pending: bytes,
        kept: Iterable[Piece],
        new_decoder: Callable[[], Decoder | None],
    ) -> Self:
        """The streams that a reader had when it committed."""
        streams = cls()
        for row in table:
            stream = Stream(int(row["next"]), new_decoder())
            stream.sequence = int(row["sequence"])
            stream.end = None if row["end"] == _NO_END else int(row["end"])
            stream.broken = row["aligned"] == _BROKEN
            streams.open(int(row["connection"]), stream)
        streams._take_back(kept)
        for stream in streams._streams.values():
            stream.keep()
        streams._take_back(_unpacked(pending))
        for connection, stream in streams._streams.items():
            streams.checkin(connection, stream)
        return streams

    @property
    def has_fresh(self) -> bool:
        """May `fresh_size` be more than 0?"""
        return bool(self._unaligned)

    @property
    def fresh_size(self) -> int:
        """At most so many bytes has `pending`."""
        return sum(stream.fresh_size for stream in self._unaligned.values())

    def fresh(self) -> Iterator[Piece]:
        """The bytes of unfinished messages that were not kept."""
        for connection, stream in self._unaligned.items():
            for offset, piece in stream.fresh():
                yield connection, offset, piece

    def keep(self) -> None:
        """What is fresh now has been kept where `restore` gets it from."""
        for stream in self._unaligned.values():
            stream.keep()

    def pending(self) -> bytes:
        """What is fresh, for `restore`."""
        if not self._unaligned:
            return b""
        return b"".join(
            _PIECE.pack(connection, len(piece), offset) + piece for connection, offset, piece in self.fresh()
        )

    def start(self, connection: int) -> int | None:
        """The offset of a connection's first byte that belongs to no message delivered; None if it is not
        open."""
        return int(self.table["next"][self._row(connection)]) if connection in self._streams else None

    def __len__(self) -> int:
        return self.count

    def open(self, connection: int, stream: Stream) -> None:
        """Add a connection. Its number is new."""
        if self.count == len(self.table):
            self.table = np.concatenate([self.table, np.zeros(self.count, OPEN_STREAM)])
        row = self._row(connection)
        self.table[row + 1 : self.count + 1] = self.table[row : self.count].copy()
        self._streams[connection] = stream
        self.count += 1
        self._share()
        self.table[row]["connection"] = connection
        self.checkin(connection, stream)

    def checkout(self, connection: int) -> Stream | None:
        """The stream of a connection, up to date; None if it is not open."""
        stream = self._streams.get(connection)
        if stream is not None and connection not in self._unaligned:
            stream.next = int(self.table["next"][self._row(connection)])
        return stream

    def checkin(self, connection: int, stream: Stream) -> None:
        """Write a stream's new state into the table."""
        # Where the end is known, reaching it has to be noticed, which ring.c does not.
        start = stream.start
        aligned = start == stream.next and not stream.has_early and stream.end is None and not stream.broken
        if aligned:
            self._unaligned.pop(connection, None)
        else:
            self._unaligned[connection] = stream
        self.table[self._row(connection)] = (
            connection,
            _BROKEN if stream.broken else aligned,
            start,
            stream.sequence,
            _NO_END if stream.end is None else stream.end,
        )

    def close(self, connection: int) -> None:
        """Forget a connection."""
        del self._streams[connection]
        self._unaligned.pop(connection, None)
        row = self._row(connection)
        self.table[row : self.count - 1] = self.table[row + 1 : self.count].copy()
        self.count -= 1
        self._share()

    def _share(self) -> None:
        self._shared[:] = self.table.ctypes.data, self.count

    def _row(self, connection: int) -> int:
        return int(np.searchsorted(self.table["connection"][: self.count], connection))

    def _take_back(self, pieces: Iterable[Piece]) -> None:
        for connection, offset, piece in pieces:
            if connection not in self._streams:  # it did not outlive the reader
                continue
            stream = self._streams[connection]
            data = stream.push(offset, piece)
            if stream.broken:
                continue
            if stream.decoder:
                stream.decoder.feed(data)
            else:
                stream.carry += data


def _unpacked(pending: bytes) -> Iterator[Piece]:
    position = 0
    while position < len(pending):
        connection, length, offset = _PIECE.unpack_from(pending, position)
        position += _PIECE.size + length
        yield connection, offset, pending[position - length : position]
